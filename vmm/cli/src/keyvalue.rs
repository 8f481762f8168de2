//! `key=value,key=value` on the command line, read through the same serde types as the file.
//!
//! Knows no particular option: names, types and the refusal of unknown keys come from the target
//! type. A comma in a value is doubled.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::Deserialize;
use serde::de::value::{Error, MapDeserializer};
use serde::de::{self, DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Visitor};
use splitring::VmConfig;

/// The remedy if a comma was meant as part of a value.
const COMMA_RULE: &str = "double a comma in a value, as in a,,b";

/// Reads `text` as the fields of `T`. `shorthand` is the key of a first item without `=`.
///
/// # Errors
/// A key without a value, a key given twice, or an error of `T`, as one line.
pub(crate) fn parse<T: DeserializeOwned>(
    text: &OsStr,
    shorthand: Option<&str>,
) -> Result<T, String> {
    parse_with_path(text, shorthand, None).map(|(value, _)| value)
}

/// Reads `text` as the value of the device `key`; returns a configuration that has only this
/// device. With `keys`, the value is on, off or the device's keys; otherwise it is a switch.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_device(
    key: &'static str,
    keys: bool,
    text: &OsStr,
) -> Result<VmConfig, String> {
    let value = match text.to_str() {
        Some("off") if keys => DeviceValue::Absent,
        Some("on") if keys => DeviceValue::Keys(Vec::new()),
        _ if keys => DeviceValue::Keys(pairs(text, None, None)?.0),
        Some(word) => DeviceValue::Switch(Word(word.to_owned())),
        None => return Err(format!("`{}` is neither on nor off", text.display())),
    };
    let value = MapDeserializer::<_, Error>::new([(key, value)].into_iter());
    VmConfig::deserialize(value).map_err(|error| error.to_string())
}

/// As [`parse`], except that the value of the key `path` need not be UTF-8: it is returned
/// separately, since no serde type accepts it.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_with_path<T: DeserializeOwned>(
    text: &OsStr,
    shorthand: Option<&str>,
    path: Option<&str>,
) -> Result<(T, Option<OsString>), String> {
    let (pairs, given) = pairs(text, shorthand, path)?;
    let value = T::deserialize(MapDeserializer::<_, Error>::new(pairs.into_iter()))
        .map_err(|error| error.to_string())?;
    Ok((value, given))
}

/// Returns the keys of `text` with their values, and the value of the key `path` as typed if it is
/// not UTF-8.
fn pairs(
    text: &OsStr,
    shorthand: Option<&str>,
    path: Option<&str>,
) -> Result<(Pairs, Option<OsString>), String> {
    let mut pairs: Pairs = Vec::new();
    let mut given = None;
    for (index, item) in split(text.as_bytes()).into_iter().enumerate() {
        let (key, value) = pair(&item, shorthand.filter(|_| index == 0))?;
        if pairs.iter().any(|(known, _)| *known == key) {
            return Err(format!("key `{key}` is given twice"));
        }
        let word = match String::from_utf8(value) {
            Ok(word) => word,
            Err(error) if path == Some(key.as_str()) => {
                let shown = String::from_utf8_lossy(error.as_bytes()).into_owned();
                given = Some(OsString::from_vec(error.into_bytes()));
                shown
            }
            Err(_) => return Err(format!("the value of `{key}` is not UTF-8")),
        };
        pairs.push((key, Word(word)));
    }
    Ok((pairs, given))
}

/// Returns key and value of one item. Without a key it is the value of `shorthand`.
fn pair(item: &[u8], shorthand: Option<&str>) -> Result<(String, Vec<u8>), String> {
    let shown = || String::from_utf8_lossy(item).into_owned();
    match (item.iter().position(|byte| *byte == b'='), shorthand) {
        (Some(at), _) => {
            let (key, value) = item.split_at(at);
            let key =
                std::str::from_utf8(key).map_err(|_| format!("`{}` is not UTF-8", shown()))?;
            Ok((key.trim().to_owned(), value[1..].to_vec()))
        }
        (None, Some(key)) if !item.is_empty() => Ok((key.to_owned(), item.to_vec())),
        (None, _) => Err(format!("`{}` is not key=value; {COMMA_RULE}", shown())),
    }
}

/// Splits at single commas; a doubled comma stands for one.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut items = vec![Vec::new()];
    let mut bytes = text.iter().peekable();
    while let Some(&byte) = bytes.next() {
        if byte == b',' && bytes.next_if_eq(&&b',').is_none() {
            items.push(Vec::new());
        } else if let Some(last) = items.last_mut() {
            last.push(byte);
        }
    }
    items
}

/// A value as typed; the field's type determines how it is read.
struct Word(String);

impl Word {
    fn parsed<T: std::str::FromStr>(&self, what: &str) -> Result<T, Error> {
        self.0
            .parse()
            .map_err(|_| Error::custom(format!("`{}` is not {what}", self.0)))
    }

    fn switch(&self) -> Result<bool, Error> {
        match self.0.as_str() {
            "on" | "true" | "yes" => Ok(true),
            "off" | "false" | "no" => Ok(false),
            other => Err(Error::custom(format!("`{other}` is neither on nor off"))),
        }
    }
}

impl IntoDeserializer<'_, Error> for Word {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty, $what:literal;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(self.parsed::<$type>($what)?)
        })*
    };
}

impl<'de> Deserializer<'de> for Word {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.0)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(self.switch()?)
    }

    numbers! {
        deserialize_u8 visit_u8 u8, "a number from 0 to 255";
        deserialize_u16 visit_u16 u16, "a number from 0 to 65535";
        deserialize_u32 visit_u32 u32, "a number from 0 to 4294967295";
        deserialize_u64 visit_u64 u64, "a whole number";
        deserialize_i8 visit_i8 i8, "a whole number";
        deserialize_i16 visit_i16 i16, "a whole number";
        deserialize_i32 visit_i32 i32, "a whole number";
        deserialize_i64 visit_i64 i64, "a whole number";
        deserialize_f32 visit_f32 f32, "a number";
        deserialize_f64 visit_f64 f64, "a number";
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(IntoDeserializer::<Error>::into_deserializer(self.0))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // A list inside a comma list is separated by colons: `cpus=0:2:4`.
        let words: Vec<Word> = self
            .0
            .split(':')
            .map(|word| Word(word.to_owned()))
            .collect();
        visitor.visit_seq(de::value::SeqDeserializer::new(words.into_iter()))
    }

    serde::forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct identifier
        ignored_any
    }
}

/// Keys with their values.
type Pairs = Vec<(String, Word)>;

/// The value of a device's key.
enum DeviceValue {
    Absent,
    Switch(Word),
    Keys(Pairs),
}

impl IntoDeserializer<'_, Error> for DeviceValue {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for DeviceValue {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Absent => visitor.visit_none(),
            Self::Switch(word) => visitor.visit_bool(word.switch()?),
            Self::Keys(pairs) => visitor.visit_map(MapDeserializer::new(pairs.into_iter())),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Absent => visitor.visit_none(),
            present => visitor.visit_some(present),
        }
    }

    serde::forward_to_deserialize_any! {
        bool u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests;
