use super::*;

#[test]
fn dependencies_are_read_from_modinfo() {
    let image = b"\x7fELF...\0license=GPL\0depends=kvm,ccp-core\0intree=Y\0";
    assert_eq!(dependencies(image), ["kvm", "ccp_core"]);
    assert!(dependencies(b"\0depends=\0name=irqbypass\0").is_empty());
}
