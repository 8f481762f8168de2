use super::*;

#[test]
fn a_command_is_shown_as_it_can_be_typed() {
    let words = ["test", "--only", "it's one", "a=b"].map(str::to_owned);
    let shown = arguments_shown(words.into_iter());
    assert_eq!(shown, r"test --only 'it'\''s one' a=b");
}
