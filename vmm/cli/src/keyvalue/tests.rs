//! Keys and values of every type, and the errors.

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Colour {
    Red,
    Blue,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Target {
    path: String,
    #[serde(default)]
    read_only: bool,
    queues: Option<u16>,
    colour: Option<Colour>,
}

#[test]
fn typed_fields_are_read_from_words() {
    let target: Target = parse(
        "path=a,,b=c,read-only=on,queues=4,colour=blue".as_ref(),
        None,
    )
    .expect("valid");
    let expected = Target {
        path: "a,b=c".into(),
        read_only: true,
        queues: Some(4),
        colour: Some(Colour::Blue),
    };
    assert_eq!(target, expected);
}

#[test]
fn a_leading_word_stands_for_the_shorthand_key() {
    let target: Target = parse("123,queues=1".as_ref(), Some("path")).expect("valid");
    assert_eq!((target.path.as_str(), target.queues), ("123", Some(1)));
}

#[test]
fn mistakes_are_refused_by_name() {
    for (text, wanted) in [
        ("path=a,color=red", "unknown field `color`"),
        ("path=a,path=b", "given twice"),
        ("path=a,queues=x", "`x` is not a number"),
        ("path=a,read-only=maybe", "neither on nor off"),
        ("path=a,colour=green", "unknown variant `green`"),
        ("queues=1", "missing field `path`"),
        ("path=a,", "not key=value"),
        ("path=a,b", "double a comma in a value"),
    ] {
        let error = parse::<Target>(text.as_ref(), None).expect_err(text);
        assert!(error.contains(wanted), "{text}: {error}");
    }
}

#[test]
fn a_path_need_not_be_utf_8_and_anything_else_must() {
    let text = OsStr::from_bytes(b"a,,\xff,queues=1");
    let (target, path) =
        parse_with_path::<Target>(text, Some("path"), Some("path")).expect("valid");
    assert_eq!(path.as_deref(), Some(OsStr::from_bytes(b"a,\xff")));
    assert_eq!(target.queues, Some(1));
    let refused = parse::<Target>(text, Some("path")).expect_err("not UTF-8");
    assert!(refused.contains("`path` is not UTF-8"), "{refused}");
    let text = OsStr::from_bytes(b"path=a,\xff=1");
    let refused = parse_with_path::<Target>(text, None, Some("path")).expect_err("key");
    assert!(refused.contains("is not UTF-8"), "{refused}");
}
