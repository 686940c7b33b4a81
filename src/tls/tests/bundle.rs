//! The bundles as the programs read them that people use: OpenSSL, NSS (Firefox, Chromium on Linux), Java.

use super::*;

const PASSWORD: &str = "kx7Qm2Vt9pRw";
const BOTH: [(BundleEncoding, &str); 2] =
    [(BundleEncoding::Modern, "modern.p12"), (BundleEncoding::Legacy, "legacy.p12")];

fn bundles(folder: &Folder) -> IssuedCertificate {
    let issued = terminal(&memory_ca(), 5);
    for (encoding, file) in BOTH {
        folder.write(file, pkcs12(&issued, encoding, PASSWORD).unwrap());
    }
    issued
}

#[test]
fn openssl_imports_both_encodings() {
    let folder = Folder::new();
    let issued = bundles(&folder);
    for (encoding, file) in BOTH {
        let legacy = encoding == BundleEncoding::Legacy;
        let read = |password: &str, what: &[&str]| {
            let password = format!("pass:{password}");
            let mut arguments = vec!["pkcs12", "-in", file, "-passin", &password];
            arguments.extend(what);
            arguments.extend(legacy.then_some("-legacy"));
            run(&folder.0, "openssl", &arguments)
        };
        let Some(certificates) = read(PASSWORD, &["-nokeys"]) else { return };
        let certificates = certificates.unwrap();
        assert_eq!(certificates.matches("BEGIN CERTIFICATE").count(), 1, "{certificates}");
        assert!(certificates.contains(&issued.certificate_pem));
        let key = read(PASSWORD, &["-nocerts", "-noenc"]).unwrap().unwrap();
        assert!(key.contains("BEGIN PRIVATE KEY"));
        let info = read(PASSWORD, &["-info", "-noout"]).unwrap().unwrap();
        let expected = if legacy { ["sha1", "3-KeyTripleDES"] } else { ["sha256", "AES-256-CBC"] };
        assert!(expected.iter().all(|word| info.contains(word)), "{info}");
        assert!(read("another password", &["-nokeys"]).unwrap().is_err());
    }
}

#[test]
fn nss_imports_both_encodings() {
    let folder = Folder::new();
    bundles(&folder);
    for (_, file) in BOTH {
        let store = format!("sql:nss-{file}");
        fs::create_dir(folder.file(&format!("nss-{file}"))).unwrap();
        let Some(made) = run(&folder.0, "certutil", &["-N", "-d", &store, "--empty-password"]) else {
            return;
        };
        made.unwrap();
        let import = ["-i", file, "-d", &store, "-W", PASSWORD, "-K", ""];
        let Some(imported) = run(&folder.0, "pk12util", &import) else { return };
        imported.unwrap();
        let listed = run(&folder.0, "certutil", &["-L", "-d", &store]).unwrap().unwrap();
        assert!(listed.contains("〇〇訪問看護 端末5") && listed.contains("u,u,u"), "{listed}");
        let keys = run(&folder.0, "certutil", &["-K", "-d", &store]).unwrap().unwrap();
        assert!(keys.contains("< 0>"), "{keys}");
    }
}

#[test]
fn java_imports_both_encodings() {
    let folder = Folder::new();
    bundles(&folder);
    for (_, file) in BOTH {
        let store = format!("{file}.jks");
        #[rustfmt::skip]
        let import = [
            "-J-Dfile.encoding=UTF-8", "-importkeystore", "-noprompt", "-srckeystore", file, "-srcstoretype", "PKCS12",
            "-srcstorepass", PASSWORD, "-destkeystore", &store, "-deststorepass", PASSWORD,
        ];
        let Some(imported) = run(&folder.0, "keytool", &import) else { return };
        imported.unwrap();
        let list = ["-J-Duser.language=en", "-list", "-v", "-keystore", &store, "-storepass", PASSWORD];
        let listed = run(&folder.0, "keytool", &list).unwrap().unwrap();
        assert!(listed.contains("PrivateKeyEntry"), "{listed}");
        assert!(listed.contains("Certificate chain length: 1"), "{listed}");
    }
}

#[test]
fn a_name_beyond_the_basic_plane_is_bundled_too() {
    let ca = memory_ca();
    let subject = TerminalSubject { common_name: "𠮷田医院 端末1".to_owned(), ..subject(1) };
    let issued = ca.issue(&subject, NOW, DAY).unwrap();
    for (encoding, _) in BOTH {
        let file = pkcs12(&issued, encoding, PASSWORD).unwrap();
        let store =
            p12_keystore::KeyStore::from_pkcs12(&file, PASSWORD, p12_keystore::Pkcs12ImportPolicy::Relaxed)
                .unwrap();
        let (alias, chain) = store.private_key_chain().unwrap();
        assert_eq!(alias, "〓田医院 端末1");
        assert_eq!(chain.certs()[0].as_der(), &*issued.certificate_der);
        assert_eq!(chain.certs().len(), 1);
    }
}

#[test]
fn a_password_that_importers_disagree_on_is_refused() {
    let issued = terminal(&memory_ca(), 5);
    for password in ["", "short", "ぱすわーどぱすわーど", "with a space", &"x".repeat(129)] {
        assert!(pkcs12(&issued, BundleEncoding::Modern, password).is_err(), "{password}");
    }
}

#[test]
fn apples_profile_is_well_formed_stable_and_without_the_password() {
    let folder = Folder::new();
    let issued = terminal(&memory_ca(), 5);
    let bundle = pkcs12(&issued, BundleEncoding::Legacy, PASSWORD).unwrap();
    let profile = Profile {
        display_name: "<部屋> & \"端末\"",
        organization: "〇〇市",
        description: "電子証明書を入れます。\u{1}",
        identifier: "jp.example.heya",
    };
    let written = profile.write(&issued, &bundle);
    let uuids = |text: &str| {
        let lines = text.lines().collect::<Vec<_>>();
        lines
            .windows(2)
            .filter(|pair| pair[0].contains("PayloadUUID"))
            .map(|pair| pair[1].to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(uuids(&written), uuids(&profile.write(&issued, b"another encoding")));
    let other = profile.write(&terminal(&memory_ca(), 5), &bundle);
    assert!(uuids(&written).len() == 2 && uuids(&written)[0] != uuids(&written)[1]);
    assert!(uuids(&other).iter().all(|uuid| !uuids(&written).contains(uuid)));
    assert!(!written.contains(PASSWORD) && !written.contains('\u{1}'));

    folder.write("heya.mobileconfig", &written);
    let script = "import plistlib,sys,uuid
p=plistlib.load(open('heya.mobileconfig','rb')); c,=p['PayloadContent']
assert p['PayloadDisplayName']=='<部屋> & \"端末\"', p
assert c['PayloadType']=='com.apple.security.pkcs12' and 'Password' not in c
uuid.UUID(p['PayloadUUID']); open('out.p12','wb').write(c['PayloadContent'])";
    let Some(read) = run(&folder.0, "python3", &["-X", "utf8", "-c", script]) else { return };
    read.unwrap();
    assert_eq!(fs::read(folder.file("out.p12")).unwrap(), bundle);
}
