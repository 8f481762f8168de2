use super::*;

fn config(text: &str) -> Config {
    let mut config = Config::default();
    config.add(text);
    config
}

#[test]
fn labels_have_their_kernel_ramdisks_and_command_line() {
    let config = config(
        "DEFAULT two\nAPPEND quiet\nlabel one\n  menu label ^First\n  kernel a\nLABEL two\n\tLINUX /b\n\
         \tINITRD /i,/j\n\tAPPEND root=/dev/vda ro\nlabel three\nkernel c\nappend initrd=x,y z\n\
         label four\nkernel d\nappend -\n",
    );
    let [one, two, three, four] = &config.labels[..] else {
        panic!("four labels")
    };
    assert_eq!(config.chosen(), 1);
    assert_eq!(one.title.as_deref(), Some("First"));
    assert_eq!(config.command_line(one), "quiet");
    assert_eq!(config.initrds(two), ["/i", "/j"]);
    assert_eq!(config.command_line(two), "root=/dev/vda ro");
    assert_eq!(config.initrds(three), ["x", "y"]);
    assert_eq!(config.command_line(three), "z");
    assert_eq!(config.command_line(four), "");
}

#[test]
fn the_menu_s_default_outranks_the_named_one() {
    let text = "default one\nlabel one\nkernel a\nlabel two\nmenu default\nkernel b\n";
    assert_eq!(config(text).chosen(), 1);
    assert_eq!(config("default none\nlabel one\n").chosen(), 0);
}

#[test]
fn included_files_are_listed() {
    let includes = config("include a.cfg\nmenu include b.cfg title\n").includes;
    assert_eq!(includes, ["a.cfg", "b.cfg"]);
}
