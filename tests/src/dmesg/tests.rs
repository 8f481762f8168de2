use super::*;

#[test]
fn only_kernel_messages_of_level_warning_or_worse_count() {
    let log = "<6>[    0.1] fine\n<4>[    0.2] odd\n<3>[    0.3] bad\n<12>[ 1.0] a user's\n";
    assert_eq!(unexpected(log), ["<4>[    0.2] odd", "<3>[    0.3] bad"]);
}
