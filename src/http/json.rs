//! JSON from outside, read strictly: no duplicate keys, no NUL, bounded depth, so that what is checked is what is
//! stored. Fractional numbers are told apart, since canonical JSON has none (appendices, "Canonical JSON").

use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{Code, Error, Result, refuse};

/// Checks a body. Its shape is checked by whoever reads it.
pub fn check(body: &[u8]) -> Result<()> {
    if std::str::from_utf8(body).is_err() {
        return Err(refuse(Code::NotJson, "The body is not UTF-8."));
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let strict = reader.deserialize_any(Strict).and_then(|()| reader.end());
    strict.map_err(|error| refusal(&error))
}

fn refusal(error: &serde_json::Error) -> Error {
    use serde_json::error::Category;
    match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => {
            let text = error.to_string();
            if text.contains("recursion limit") {
                refuse(Code::BadJson, "The JSON is nested too deeply.")
            } else {
                refuse(Code::NotJson, "The body is not valid JSON.")
            }
        }
        Category::Data => {
            refuse(Code::BadJson, "The JSON has a duplicate key, a NUL character or a bad number.")
        }
    }
}

/// Visits everything and keeps nothing.
struct Strict;

impl<'de> serde::de::DeserializeSeed<'de> for Strict {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicate keys and NUL")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        // PostgreSQL cannot store it and SQLite can: refused on both.
        if text.contains('\0') { Err(E::custom("NUL")) } else { Ok(()) }
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Strict)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if key.contains('\0') {
                return Err(A::Error::custom("NUL"));
            }
            if !seen.insert(key) {
                return Err(A::Error::custom("duplicate key"));
            }
            map.next_value_seed(Strict)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &[u8]) -> Option<Code> {
        check(body).err().and_then(|error| error.code())
    }

    #[test]
    fn bad_json_is_told_apart() {
        assert_eq!(code(br#"{"a":[1,{"b":null}],"c":"\u0041"}"#), None);
        assert_eq!(code(b"{"), Some(Code::NotJson));
        assert_eq!(code(b"{} x"), Some(Code::NotJson));
        assert_eq!(code(b"\xff\xfe"), Some(Code::NotJson));
        assert_eq!(code(br#"{"a":1,"a":2}"#), Some(Code::BadJson));
        assert_eq!(code(br#"{"a":{"b":1,"\u0062":2}}"#), Some(Code::BadJson));
        assert_eq!(code(br#"{"a":"x\u0000y"}"#), Some(Code::BadJson));
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert_eq!(code(deep.as_bytes()), Some(Code::BadJson));
    }
}
