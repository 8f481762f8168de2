use super::*;

/// Otherwise every input would end before anything is read.
#[test]
fn each_kind_of_description_is_reached() {
    let boots = |files: &[(&str, &[u8])]| {
        let survey = Survey::new(image(files), Budget::new()).unwrap();
        let plan = survey.plan(&Choice::new());
        plan.unwrap_or_else(|error| panic!("{files:?}: {error}"))
            .command_line
    };
    let kernel: (&str, &[u8]) = ("VMLINUZ    ", b"k");
    let grub = b"menuentry a { linux /grub/vmlinuz g }";
    assert_eq!(
        boots(&[("GRUB    CFG", grub), kernel]),
        "BOOT_IMAGE=/grub/vmlinuz g"
    );
    let entry = b"linux /grub/vmlinuz\noptions b";
    assert_eq!(boots(&[("A       CON", entry), kernel]), "b");
    let label = b"label a\nkernel vmlinuz\nappend e";
    assert_eq!(boots(&[("SYSLINUXCFG", label), kernel]), "e");
}
