use super::*;

#[test]
fn the_name_is_known_and_others_are_not() {
    let answers = Answers {
        name: "far.test",
        v4: Ipv4Addr::new(192, 0, 2, 1),
        v6: Ipv6Addr::LOCALHOST,
    };
    let ask = |name: &[u8], kind: u8| {
        let head = [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name].concat();
        reply(&[&head[..], &[0, 0, kind, 0, 1]].concat(), answers).unwrap()
    };
    let known = ask(b"\x03far\x04TEST", 1);
    assert_eq!((known[3], known[7]), (0x80, 1));
    assert!(known.ends_with(&[0, 4, 192, 0, 2, 1]));
    assert!(ask(b"\x03far\x04test", 28).ends_with(&[0, 1]));
    let unknown = ask(b"\x04near\x04test", 1);
    assert_eq!((unknown[3], unknown[7]), (0x83, 0));
    assert!(reply(&[0; 13], answers).is_none());
}
