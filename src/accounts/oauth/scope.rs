//! Scopes (client-server API, "Scope"; MSC2967): the whole API, as one device.

use super::{Told, told};

/// The whole client-server API, and the name that it had before it was specified.
const API: [&str; 2] = ["urn:matrix:client:api:*", "urn:matrix:org.matrix.msc2967.client:api:*"];
/// A device, likewise.
const DEVICE: [&str; 2] = ["urn:matrix:client:device:", "urn:matrix:org.matrix.msc2967.client:device:"];
/// The longest device id, in bytes.
const DEVICE_ID_MAX: usize = 255;

/// A scope that can be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The device.
    pub device_id: String,
    /// What is granted of what was asked for, in the client's spelling.
    pub granted: String,
}

/// Reads what a client asks for: the API and one device. What is not known is left out, as RFC 6749 has it.
pub fn parse(text: &str) -> Result<Scope, Told> {
    let (mut granted, mut device, mut api) = (Vec::new(), None, false);
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if API.contains(&word) {
            api = true;
            granted.push(word);
        } else if let Some(id) = DEVICE.iter().find_map(|start| word.strip_prefix(start)) {
            // RFC 3986, section 2.3: unreserved characters.
            let good = !id.is_empty()
                && id.len() <= DEVICE_ID_MAX
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b));
            if !good || device.is_some_and(|other| other != id) {
                return Err(told("invalid_scope", "one device, of letters, digits and - . _ ~"));
            }
            device = Some(id);
            granted.push(word);
        }
    }
    match device {
        Some(device_id) if api => {
            granted.dedup();
            Ok(Scope { device_id: device_id.to_owned(), granted: granted.join(" ") })
        }
        _ => Err(told("invalid_scope", "urn:matrix:client:api:* and urn:matrix:client:device:… are needed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_the_api_and_one_device() {
        let scope = parse("openid urn:matrix:client:api:* urn:matrix:client:device:ABCDEFGHIJ").unwrap();
        assert_eq!(scope.device_id, "ABCDEFGHIJ");
        assert_eq!(scope.granted, "urn:matrix:client:api:* urn:matrix:client:device:ABCDEFGHIJ");
        let unstable = "urn:matrix:org.matrix.msc2967.client:api:* urn:matrix:org.matrix.msc2967.client:device:abc.de-f_1~";
        assert_eq!(parse(unstable).unwrap().granted, unstable);
        for bad in [
            "",
            "urn:matrix:client:api:*",
            "urn:matrix:client:device:ABCDEFGHIJ",
            "urn:matrix:client:api:* urn:matrix:client:device:",
            "urn:matrix:client:api:* urn:matrix:client:device:A urn:matrix:client:device:B",
            "urn:matrix:client:api:* urn:matrix:client:device:a/b",
            "urn:matrix:client:api:* urn:matrix:client:device:端末",
            "urn:synapse:admin:*",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
