//! What an upload is, by its first bytes; and the refusal of programs and of documents with macros (REQUIREMENTS C33).
//! What a client declares is believed only where the bytes cannot tell and a wrong word does no harm.
//!
//! Not seen: what is inside an encrypted or nested compressed archive, and macros of old PowerPoint files (they are
//! compressed within the file). The terminals' virus scanners remain the other half.

use std::io::{self, Read, Seek, SeekFrom};

use crate::error::{Error, Result, forbidden, invalid};

/// The longest file name in bytes: what Linux file systems take.
const FILE_NAME_BYTES_MAX: usize = 255;
/// Bytes looked at from the beginning.
const HEAD_BYTES: u64 = 4_096;
/// Bytes read at once while a whole file is scanned.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes that a scan always has ahead of it: a zip entry's header with the longest name.
const AHEAD_BYTES: usize = 46 + 65_535;

/// Extensions of programs, scripts, installers, disk images and documents with macros, sorted.
const PROGRAM_EXTENSIONS: &[&str] = &[
    "accde",
    "ade",
    "adp",
    "apk",
    "app",
    "application",
    "appref-ms",
    "appx",
    "bash",
    "bat",
    "cab",
    "chm",
    "cmd",
    "com",
    "command",
    "cpl",
    "crx",
    "csh",
    "deb",
    "diagcab",
    "dll",
    "dmg",
    "docm",
    "dotm",
    "exe",
    "gadget",
    "hlp",
    "hta",
    "img",
    "inf",
    "iqy",
    "iso",
    "jar",
    "jnlp",
    "js",
    "jse",
    "ksh",
    "library-ms",
    "lnk",
    "mde",
    "msc",
    "msi",
    "msix",
    "msp",
    "mst",
    "msu",
    "ocx",
    "oxt",
    "pif",
    "pkg",
    "pl",
    "potm",
    "ppa",
    "ppam",
    "ppsm",
    "pptm",
    "ps1",
    "psd1",
    "psm1",
    "py",
    "pyc",
    "pyw",
    "pyz",
    "reg",
    "rpm",
    "scf",
    "scr",
    "sct",
    "search-ms",
    "settingcontent-ms",
    "sh",
    "sldm",
    "slk",
    "sys",
    "udf",
    "url",
    "vb",
    "vbe",
    "vbs",
    "vhd",
    "vhdx",
    "website",
    "ws",
    "wsc",
    "wsf",
    "wsh",
    "xbap",
    "xla",
    "xlam",
    "xll",
    "xlsb",
    "xlsm",
    "xltm",
    "xpi",
    "zsh",
];

/// Checks an upload and says its content type. `declared` is the request's `Content-Type`.
pub fn examine<R: Read + Seek>(file: &mut R, declared: Option<&str>, name: Option<&str>) -> Result<String> {
    if name.is_some_and(is_program_name) || declared.is_some_and(is_program_type) {
        return Err(refused());
    }
    file.seek(SeekFrom::Start(0))?;
    let mut head = Vec::new();
    file.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
    if is_program(&head) || is_disk_image(file)? {
        return Err(refused());
    }
    file.seek(SeekFrom::Start(0))?;
    let hides_program = match container(&head) {
        Some(Container::Zip) => zip_holds_program(file)?,
        Some(Container::Ole2) => ole2_holds_macros(file)?,
        None => false,
    };
    if hides_program {
        return Err(refused());
    }
    Ok(settle(&head, declared))
}

/// A file name as people see it. matrix-js-sdk encodes names twice, so that one that was decoded is still percent-encoded:
/// it would be three times as long as it is, hide its ending from the checks, and be saved under such a name.
pub fn plain_name(name: String) -> String {
    let bytes = name.as_bytes();
    let encoded = name.is_ascii()
        && name.contains('%')
        && bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%').all(|(at, _)| {
            bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
        });
    let decoded = percent_encoding::percent_decode_str(&name).decode_utf8();
    match decoded {
        Ok(decoded) if encoded => decoded.into_owned(),
        _ => name,
    }
}

/// Checks a file name that a client gives.
pub fn check_name(name: &str) -> Result<()> {
    // Bidirectional overrides make "gpj.exe" look like "exe.jpg".
    let bad = |c: char| {
        c.is_control()
            || matches!(c, '/' | '\\' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if name.is_empty() || name.len() > FILE_NAME_BYTES_MAX || name.chars().any(bad) {
        return Err(invalid(
            "ファイル名は255バイト（日本語で約85文字）以内とし、「/」「\\」や制御文字を含めないでください。\
             (A file name has at most 255 bytes, no path separators and no control characters.)",
        ));
    }
    Ok(())
}

/// Whether a file of this name would be run, or is a document with macros.
pub fn is_program_name(name: &str) -> bool {
    // Windows drops dots and spaces at the end: "a.exe. " runs.
    let name = name.trim_end_matches(|c: char| c == '.' || c.is_whitespace() || c == '\0');
    let Some((_, extension)) = name.rsplit_once('.') else { return false };
    let extension = extension.to_ascii_lowercase();
    PROGRAM_EXTENSIONS.binary_search(&extension.as_str()).is_ok()
}

/// Whether browsers may show this type themselves (client-server API, "Serving inline content"); all else is an
/// attachment. Neither SVG nor HTML nor XML is among them, since they can hold scripts.
pub fn is_inline(content_type: &str) -> bool {
    matches!(
        essence(content_type),
        "text/css"
            | "text/plain"
            | "text/csv"
            | "application/json"
            | "application/ld+json"
            | "image/jpeg"
            | "image/gif"
            | "image/png"
            | "image/apng"
            | "image/webp"
            | "image/avif"
            | "video/mp4"
            | "video/webm"
            | "video/ogg"
            | "video/quicktime"
            | "audio/mp4"
            | "audio/webm"
            | "audio/aac"
            | "audio/mpeg"
            | "audio/ogg"
            | "audio/wave"
            | "audio/wav"
            | "audio/x-wav"
            | "audio/x-pn-wav"
            | "audio/flac"
            | "audio/x-flac"
    )
}

/// The type that an answer names: markup and scripts are sent as bytes that no browser interprets.
pub fn served_type(content_type: &str) -> &str {
    let kind = essence(content_type);
    let active = kind.ends_with("/xml")
        || kind.ends_with("+xml")
        || kind.contains("html")
        || kind.contains("javascript")
        || kind.contains("ecmascript");
    if active { "application/octet-stream" } else { content_type }
}

/// A content type without its parameters.
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// The content type that the first bytes tell.
pub fn content_type(head: &[u8]) -> Option<&'static str> {
    let at = |from: usize, bytes: &[u8]| head.get(from..from + bytes.len()) == Some(bytes);
    let early = |bytes: &[u8]| head[..head.len().min(128)].windows(bytes.len()).any(|w| w == bytes);
    Some(match head {
        _ if at(0, b"\x89PNG\r\n\x1a\n") => "image/png",
        _ if at(0, b"\xff\xd8\xff") => "image/jpeg",
        _ if at(0, b"GIF87a") || at(0, b"GIF89a") => "image/gif",
        _ if at(0, b"RIFF") && at(8, b"WEBP") => "image/webp",
        _ if at(0, b"RIFF") && at(8, b"WAVE") => "audio/wav",
        _ if at(0, b"RIFF") && at(8, b"AVI ") => "video/x-msvideo",
        _ if at(0, b"II*\0") || at(0, b"MM\0*") => "image/tiff",
        _ if at(0, b"%PDF-") => "application/pdf",
        _ if at(0, b"fLaC") => "audio/flac",
        _ if at(0, b"OggS") && early(b"\x80theora") => "video/ogg",
        _ if at(0, b"OggS") => "audio/ogg",
        _ if at(0, b"\x1a\x45\xdf\xa3") && early(b"webm") => "video/webm",
        _ if at(0, b"\x1a\x45\xdf\xa3") => "video/x-matroska",
        _ if at(0, b"ID3") => "audio/mpeg",
        _ if at(128, b"DICM") => "application/dicom",
        _ if at(4, b"ftyp") => match head.get(8..12) {
            Some(b"avif" | b"avis") => "image/avif",
            Some(b"heic" | b"heix" | b"hevc" | b"heim" | b"mif1" | b"msf1") => "image/heic",
            Some(b"M4A " | b"M4B ") => "audio/mp4",
            Some(b"qt  ") => "video/quicktime",
            _ => "video/mp4",
        },
        [0xff, 0xf1 | 0xf9, ..] => "audio/aac",
        [0xff, 0xfb | 0xfa | 0xf3 | 0xf2, ..] => "audio/mpeg",
        _ => return None,
    })
}

/// The content type to store: the sniffed one, or the declared one where it is harmless.
fn settle(head: &[u8], declared: Option<&str>) -> String {
    let declared = declared.and_then(well_formed);
    let Some(sniffed) = content_type(head) else {
        return match (container(head), declared) {
            (_, Some(kind)) if !needs_proof(&kind) => kind,
            (Some(Container::Zip), _) => "application/zip".to_owned(),
            _ => "application/octet-stream".to_owned(),
        };
    };
    match declared {
        // audio/webm and video/webm, audio/mp4 and video/mp4, … are one container.
        Some(kind) if same_container(essence(&kind), sniffed) => kind,
        _ => sniffed.to_owned(),
    }
}

fn same_container(declared: &str, sniffed: &str) -> bool {
    let (Some((top, sub)), Some((_, sniffed_sub))) = (declared.split_once('/'), sniffed.split_once('/'))
    else {
        return false;
    };
    (top == "audio" || top == "video") && sub == sniffed_sub
}

/// Whether a type is shown inline as picture, sound or film, or is a PDF: the bytes must say so.
fn needs_proof(kind: &str) -> bool {
    let kind = essence(kind);
    kind == "application/pdf"
        || (is_inline(kind) && !kind.starts_with("text/") && !kind.starts_with("application/"))
}

/// A declared content type as `type/subtype`, with its charset if it has one; nothing where it is not well formed.
fn well_formed(declared: &str) -> Option<String> {
    let token = |text: &str| {
        !text.is_empty()
            && text.len() <= 100
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&b))
    };
    let kind = essence(declared).to_ascii_lowercase();
    let (top, sub) = kind.split_once('/')?;
    if !token(top) || !token(sub) {
        return None;
    }
    let charset = declared
        .split(';')
        .skip(1)
        .filter_map(|parameter| parameter.trim().split_once('='))
        .find(|(key, _)| key.eq_ignore_ascii_case("charset"))
        .map(|(_, value)| value.trim_matches('"'))
        .filter(|value| token(value));
    Some(match charset {
        Some(charset) => format!("{kind}; charset={}", charset.to_ascii_lowercase()),
        None => kind,
    })
}

fn refused() -> Error {
    forbidden(
        "プログラムやマクロを含むファイルは添付できません。PDFなどに変換してから添付してください。\
         (Programs, scripts and documents with macros cannot be attached.)",
    )
}

fn is_program_type(declared: &str) -> bool {
    let kind = essence(declared).to_ascii_lowercase();
    kind.contains("macroenabled")
        || matches!(
            kind.as_str(),
            "application/x-msdownload"
                | "application/x-msdos-program"
                | "application/x-dosexec"
                | "application/vnd.microsoft.portable-executable"
                | "application/x-executable"
                | "application/x-mach-binary"
                | "application/x-msi"
                | "application/x-ms-shortcut"
                | "application/x-sh"
                | "application/hta"
                | "application/java-archive"
                | "application/vnd.android.package-archive"
        )
}

/// Programs and scripts by their first bytes.
fn is_program(head: &[u8]) -> bool {
    let starts = |bytes: &[u8]| head.starts_with(bytes);
    // A text may begin with "MZ"; a DOS or Windows program has zero bytes in its header.
    if starts(b"MZ") && head.iter().take(64).any(|b| *b == 0) {
        return true;
    }
    if starts(b"\x7fELF")
        // Mach-O in both byte orders; CAFEBABE is a universal one, or a Java class.
        || [b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf"]
            .iter()
            .any(|magic| starts(*magic))
        // Shell link (MS-SHLLINK 2.1), Android dex, WebAssembly, compiled help.
        || starts(b"\x4c\0\0\0\x01\x14\x02\0")
        || starts(b"dex\n0")
        || starts(b"\0asm")
        || starts(b"ITSF")
        // Cabinets, and disk images that Windows mounts (MS-CAB, MS-VHDX, VHD).
        || starts(b"MSCF\0\0\0\0")
        || starts(b"vhdxfile")
        || starts(b"conectix")
    {
        return true;
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|first| first.eq_ignore_ascii_case(word));
    begins(b"#!") || begins(b"@echo off") || begins(b"[InternetShortcut]") || begins(b"<hta:application")
}

/// ISO 9660 and UDF: the first volume descriptor is in sector 16.
fn is_disk_image<R: Read + Seek>(file: &mut R) -> Result<bool> {
    file.seek(SeekFrom::Start(0x8001))?;
    let mut mark = Vec::new();
    file.by_ref().take(5).read_to_end(&mut mark)?;
    Ok(mark == b"CD001" || mark == b"BEA01")
}

enum Container {
    Zip,
    Ole2,
}

fn container(head: &[u8]) -> Option<Container> {
    match head {
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] | [b'P', b'K', 7, 8, ..] => Some(Container::Zip),
        [0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1, ..] => Some(Container::Ole2),
        _ => None,
    }
}

/// The names of a zip's entries, from the local headers and from the central directory (APPNOTE 4.3.7, 4.3.12): a
/// crafted file may say different things in the two, so the whole file is looked through instead of either.
fn zip_holds_program<R: Read>(file: &mut R) -> io::Result<bool> {
    anywhere(file, |rest| {
        let (length_at, name_at) = match rest {
            [b'P', b'K', 3, 4, ..] => (26, 30),
            [b'P', b'K', 1, 2, ..] => (28, 46),
            _ => return false,
        };
        let Some(&[low, high]) = rest.get(length_at..length_at + 2) else { return false };
        let end = name_at + usize::from(u16::from_le_bytes([low, high]));
        rest.get(name_at..end).is_some_and(is_program_entry)
    })
}

fn is_program_entry(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_lowercase();
    let file = name.rsplit('/').next().unwrap_or_default();
    is_program_name(file)
        || file == "vbaproject.bin"
        || name.contains("xl/macrosheets/")
        || name == "meta-inf/manifest.mf"
        || name == "androidmanifest.xml"
        // OpenDocument: Basic modules; the library lists beside them are written even where there are none.
        || (name.starts_with("basic/")
            && file.ends_with(".xml")
            && !matches!(file, "script-lb.xml" | "script-lc.xml" | "dialog-lb.xml" | "dialog-lc.xml"))
}

/// Old Office files keep macros in a storage `_VBA_PROJECT` (MS-OVBA 2.2), its name in UTF-16; an installer is an OLE2
/// file of a class of its own; an embedded OOXML part may be there too.
fn ole2_holds_macros<R: Read>(file: &mut R) -> io::Result<bool> {
    let project: Vec<u8> = "_VBA_PROJECT".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let installer = b"\x84\x10\x0c\0\0\0\0\0\xc0\0\0\0\0\0\0\x46";
    let needles: [&[u8]; 3] = [&project, installer, b"vbaProject.bin"];
    anywhere(file, |rest| needles.iter().any(|needle| rest.starts_with(needle)))
}

/// Whether `look` finds something at any position. It sees the bytes from there on, at least [`AHEAD_BYTES`] of them
/// or to the end; memory stays at two chunks.
fn anywhere<R: Read>(file: &mut R, look: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
    let mut window: Vec<u8> = Vec::with_capacity(CHUNK_BYTES + AHEAD_BYTES);
    loop {
        let read = file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut window)?;
        let ends = read == 0;
        let upto = if ends { window.len() } else { window.len().saturating_sub(AHEAD_BYTES) };
        if (0..upto).any(|from| look(&window[from..])) {
            return Ok(true);
        }
        if ends {
            return Ok(false);
        }
        window.drain(..upto);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_that_were_encoded_twice_are_read() {
        for (sent, meant) in [
            ("%E5%89%B5%E9%83%A8.png", "創部.png"),
            ("a.bat%20", "a.bat "),
            ("x%E2%80%AEgpj.exe", "x\u{202e}gpj.exe"),
            ("100%.pdf", "100%.pdf"),
            ("100% sure.pdf", "100% sure.pdf"),
            ("%FF.png", "%FF.png"),
            ("創部%20.png", "創部%20.png"),
            ("plain.png", "plain.png"),
        ] {
            assert_eq!(super::plain_name(sent.to_owned()), meant);
        }
    }

    use std::io::Cursor;

    use super::*;
    use crate::error::Code;

    fn check(bytes: &[u8], declared: Option<&str>, name: Option<&str>) -> Result<String, Option<Code>> {
        examine(&mut Cursor::new(bytes), declared, name).map_err(|error| error.code())
    }

    fn refused_as_program(bytes: &[u8], name: Option<&str>) -> bool {
        check(bytes, None, name) == Err(Some(Code::Forbidden))
    }

    /// A zip of empty stored entries: local headers and a central directory.
    fn zip(names: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (mark, fixed) in [(b"PK\x03\x04", 30), (b"PK\x01\x02", 46)] {
            for name in names {
                let mut header = vec![0_u8; fixed];
                header[..4].copy_from_slice(mark);
                let at = fixed - if fixed == 30 { 4 } else { 18 };
                header[at..at + 2].copy_from_slice(&u16::try_from(name.len()).unwrap().to_le_bytes());
                bytes.extend(header);
                bytes.extend(name.as_bytes());
            }
        }
        bytes
    }

    #[test]
    fn types_are_told_by_their_bytes() {
        for (bytes, expected) in [
            (&b"\x89PNG\r\n\x1a\n...."[..], "image/png"),
            (b"\xff\xd8\xff\xe0", "image/jpeg"),
            (b"GIF89a", "image/gif"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
            (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"),
            (b"%PDF-1.7", "application/pdf"),
            (b"\0\0\0\x20ftypisom", "video/mp4"),
            (b"\0\0\0\x20ftypM4A ", "audio/mp4"),
            (b"\0\0\0\x20ftypheic", "image/heic"),
            (b"\0\0\0\x20ftypavif", "image/avif"),
            (b"ID3\x04", "audio/mpeg"),
            (b"\xff\xfb\x90", "audio/mpeg"),
            (b"OggS\0\x02", "audio/ogg"),
            (b"\x1a\x45\xdf\xa3....webm", "video/webm"),
        ] {
            assert_eq!(content_type(bytes), Some(expected));
        }
        assert_eq!(content_type("発熱".as_bytes()), None);
        assert_eq!(content_type(b""), None);
    }

    #[test]
    fn a_declared_type_is_believed_where_it_is_harmless() {
        let png = b"\x89PNG\r\n\x1a\n";
        assert_eq!(check(png, Some("text/html"), None).unwrap(), "image/png");
        assert_eq!(check(b"hello", Some("image/png"), None).unwrap(), "application/octet-stream");
        assert_eq!(
            check(b"hello", Some("text/plain; charset=UTF-8"), None).unwrap(),
            "text/plain; charset=utf-8"
        );
        assert_eq!(check(b"hello", Some("nonsense\r\nX: y"), None).unwrap(), "application/octet-stream");
        assert_eq!(check(b"hello", None, None).unwrap(), "application/octet-stream");
        assert_eq!(check(b"\x1a\x45\xdf\xa3....webm", Some("audio/webm"), None).unwrap(), "audio/webm");
        let docx = "application/vnd.openxmlformats-officedocument.wordprocessingml.document";
        let file = zip(&["[Content_Types].xml", "word/document.xml"]);
        assert_eq!(check(&file, Some(docx), Some("計画書.docx")).unwrap(), docx);
        assert_eq!(check(&file, None, None).unwrap(), "application/zip");
    }

    #[test]
    fn programs_are_refused_by_their_bytes() {
        for bytes in [
            &b"MZ\x90\0\x03\0\0\0"[..],
            b"\x7fELF\x02\x01",
            b"\xcf\xfa\xed\xfe\x07",
            b"\xca\xfe\xba\xbe\0\0",
            b"#!/bin/sh\n",
            b"\xef\xbb\xbf#!/usr/bin/env python\n",
            b"@ECHO OFF\r\n",
            b"\x4c\0\0\0\x01\x14\x02\0",
        ] {
            assert!(refused_as_program(bytes, Some("写真.jpg")));
        }
        assert!(!refused_as_program(b"MZ is how this text begins", Some("memo.txt")));
        let mut iso = vec![0_u8; 0x8001];
        iso.extend(b"CD001");
        assert!(refused_as_program(&iso, None));
    }

    #[test]
    fn programs_are_refused_by_name_and_declared_type() {
        for name in
            ["a.exe", "a.EXE", "a.exe. ", "写真.jpg.scr", "x.Docm", "x.ps1", "x.js", "x.lnk", "x.xlsb"]
        {
            assert!(refused_as_program(b"hello", Some(name)), "{name}");
        }
        for name in ["a.pdf", "exe", "a.docx", "a.jpg", "a.json", "a", ".", "計画書.xlsx"] {
            assert!(!refused_as_program(b"hello", Some(name)), "{name}");
        }
        assert!(check(b"hello", Some("application/vnd.ms-word.document.macroEnabled.12"), None).is_err());
        assert!(PROGRAM_EXTENSIONS.is_sorted());
    }

    #[test]
    fn macros_are_found_in_documents() {
        assert!(!refused_as_program(&zip(&["xl/workbook.xml", "xl/worksheets/sheet1.xml"]), Some("a.xlsx")));
        for bad in [
            "word/vbaProject.bin",
            "xl/VBAPROJECT.BIN",
            "xl/macrosheets/sheet1.xml",
            "setup/a.exe",
            "META-INF/MANIFEST.MF",
            "AndroidManifest.xml",
            "Basic/Standard/Module1.xml",
        ] {
            assert!(refused_as_program(&zip(&["word/document.xml", bad]), Some("a.docx")), "{bad}");
        }
        assert!(!refused_as_program(&zip(&["content.xml", "Basic/Standard/script-lb.xml"]), Some("a.odt")));
        let mut old = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".to_vec();
        assert!(!refused_as_program(&old, Some("a.doc")));
        old.resize(CHUNK_BYTES * 2 + 5, 0);
        old.extend("_VBA_PROJECT".encode_utf16().flat_map(u16::to_le_bytes));
        assert!(refused_as_program(&old, Some("a.doc")));
    }

    #[test]
    fn a_scan_sees_across_its_chunks() {
        for at in [0, CHUNK_BYTES - AHEAD_BYTES - 3, CHUNK_BYTES - 3, CHUNK_BYTES, 2 * CHUNK_BYTES - 1] {
            let mut bytes = vec![b'.'; at];
            bytes.extend(b"needle");
            assert!(anywhere(&mut Cursor::new(bytes), |rest| rest.starts_with(b"needle")).unwrap(), "{at}");
        }
    }

    #[test]
    fn file_names_have_limits() {
        for good in ["報告書.pdf", "a b.txt", &"x".repeat(255)] {
            assert!(check_name(good).is_ok());
        }
        for bad in ["", "a/b", "a\\b", "a\nb", "a\0", "cod\u{202e}fdp.exe", &"あ".repeat(86)] {
            assert!(check_name(bad).is_err());
        }
    }

    #[test]
    fn markup_is_inert() {
        for kind in [
            "image/svg+xml",
            "text/html; charset=utf-8",
            "application/xhtml+xml",
            "text/xml",
            "text/javascript",
        ] {
            assert!(!is_inline(kind));
            assert_eq!(served_type(kind), "application/octet-stream");
        }
        assert!(is_inline("text/plain; charset=utf-8"));
        assert!(!is_inline("application/pdf"));
        assert_eq!(served_type("application/pdf"), "application/pdf");
    }
}
