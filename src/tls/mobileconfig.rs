//! Apple's configuration profile: on an iPhone or iPad, opening it is the easiest way to install a PKCS#12 bundle.
//!
//! Format: Apple, "Configuration Profile Reference", payload `com.apple.security.pkcs12`. The profile does not
//! contain the bundle's password (the payload could): the device asks for it, so that the file alone is no key.

use base64::Engine;
use sha2::{Digest, Sha256};

use super::{IssuedCertificate, hex};

/// What a configuration profile says about itself.
#[derive(Debug, Clone)]
pub struct Profile<'a> {
    /// What Settings shows as the profile's name.
    pub display_name: &'a str,
    /// What Settings shows as its origin.
    pub organization: &'a str,
    /// A sentence about what installing it does.
    pub description: &'a str,
    /// Reverse host name that identifiers begin with, for example `jp.example.heya`.
    pub identifier: &'a str,
}

impl Profile<'_> {
    /// The profile (`.mobileconfig`, `application/x-apple-aspen-config`) with `bundle`, a PKCS#12 file of
    /// `issued`, in it.
    ///
    /// Identifiers come from the serial number: fetching the same certificate again replaces the installed
    /// profile, another certificate stands beside it.
    pub fn write(&self, issued: &IssuedCertificate, bundle: &[u8]) -> String {
        let serial = hex(&issued.serial);
        let identifier = format!("{}.{serial}", self.identifier);
        let payload = dict(&[
            ("PayloadType", string("com.apple.security.pkcs12")),
            ("PayloadVersion", "<integer>1</integer>".to_owned()),
            ("PayloadIdentifier", string(&format!("{identifier}.certificate"))),
            ("PayloadUUID", string(&uuid("certificate", &issued.serial))),
            ("PayloadDisplayName", string(&issued.common_name)),
            ("PayloadCertificateFileName", string("heya.p12")),
            (
                "PayloadContent",
                format!("<data>{}</data>", base64::engine::general_purpose::STANDARD.encode(bundle)),
            ),
        ]);
        let profile = dict(&[
            ("PayloadType", string("Configuration")),
            ("PayloadVersion", "<integer>1</integer>".to_owned()),
            ("PayloadIdentifier", string(&identifier)),
            ("PayloadUUID", string(&uuid("profile", &issued.serial))),
            ("PayloadDisplayName", string(self.display_name)),
            ("PayloadOrganization", string(self.organization)),
            ("PayloadDescription", string(self.description)),
            ("PayloadScope", string("User")),
            ("PayloadRemovalDisallowed", "<false/>".to_owned()),
            ("PayloadContent", format!("<array>\n{payload}</array>")),
        ]);
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
             \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
             <plist version=\"1.0\">\n{profile}</plist>\n"
        )
    }
}

fn dict(entries: &[(&str, String)]) -> String {
    let lines: String = entries.iter().map(|(key, value)| format!("<key>{key}</key>\n{value}\n")).collect();
    format!("<dict>\n{lines}</dict>\n")
}

fn string(text: &str) -> String {
    let mut xml = String::with_capacity(text.len() + 17);
    xml.push_str("<string>");
    for c in text.chars() {
        match c {
            '&' => xml.push_str("&amp;"),
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '"' => xml.push_str("&quot;"),
            '\'' => xml.push_str("&apos;"),
            '\n' | '\t' => xml.push(c),
            // XML 1.0 (2.2) has no way to write other control characters and these two, not even escaped.
            '\u{fffe}' | '\u{ffff}' => {}
            c if c.is_control() => {}
            c => xml.push(c),
        }
    }
    xml.push_str("</string>");
    xml
}

/// A version 8 UUID (RFC 9562, 5.8) from the serial number: random-looking, yet always the same.
fn uuid(kind: &str, serial: &[u8]) -> String {
    let digest = Sha256::new().chain_update("heya ").chain_update(kind).chain_update(serial).finalize();
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes).to_uppercase();
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}
