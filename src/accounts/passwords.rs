//! Passwords: argon2id on blocking threads, a bounded number at once; the rules for new ones.
//!
//! Every failed login costs exactly one hash run, whatever was wrong (C11): where there is no account, the run is
//! done against [`Passwords::decoy`]. The number of runs is counted, so that a test can prove it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use tokio::sync::Semaphore;
use unicode_normalization::UnicodeNormalization as _;

use super::dates;
use crate::error::{Code, Error, Result, refuse};

/// The longest password, in bytes: longer ones are refused before any hash is computed.
pub const PASSWORD_BYTES_MAX: usize = 512;
/// Hashes that may wait for their turn; beyond that callers are told to come back.
const WAITING_MAX: usize = 200;

/// The same of those who have no certificate yet: one at once, whatever comes from outside.
const OUTSIDERS_WAITING_MAX: usize = 20;

/// Computes and checks password hashes.
pub struct Passwords {
    permits: Arc<Semaphore>,
    /// Places for those who wait and those whose turn it is. Whoever goes away gives theirs back.
    places: Arc<Semaphore>,
    /// The turn of those without a certificate, and their places.
    outsider: Semaphore,
    outsiders: Semaphore,
    runs: AtomicU64,
    decoy: String,
    argon2: Argon2<'static>,
}

impl Passwords {
    /// `at_once` hashes are computed in parallel. `quick` is for test suites that make thousands of accounts (the
    /// open profile): argon2id all the same, with little memory.
    pub fn new(at_once: usize, quick: bool) -> Result<Self> {
        // OWASP password storage cheat sheet: argon2id, 19 MiB, 2 passes, 1 lane. That is the crate's default.
        let params = if quick {
            argon2::Params::new(256, 1, 1, None)
        } else {
            argon2::Params::new(19 * 1024, 2, 1, None)
        }
        .map_err(|error| Error::internal(error.to_string()))?;
        let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let decoy = argon2
            .hash_password(crate::clock::random_token(32).as_bytes())
            .map_err(|error| Error::internal(error.to_string()))?
            .to_string();
        Ok(Self {
            permits: Arc::new(Semaphore::new(at_once.max(1))),
            places: Arc::new(Semaphore::new(WAITING_MAX + at_once.max(1))),
            outsider: Semaphore::new(1),
            outsiders: Semaphore::new(OUTSIDERS_WAITING_MAX + 1),
            runs: AtomicU64::new(0),
            decoy,
            argon2,
        })
    }

    /// How many hash runs there have been.
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// A hash that no password has.
    pub fn decoy(&self) -> &str {
        &self.decoy
    }

    /// Hashes a new password.
    pub async fn hash(&self, password: &str) -> Result<String> {
        let password = normal(password);
        self.blocking(move |argon2| {
            argon2
                .hash_password(password.as_bytes())
                .map(|hash| hash.to_string())
                .map_err(|error| Error::internal(error.to_string()))
        })
        .await?
    }

    /// Whether the password has this hash.
    pub async fn verify(&self, password: &str, hash: &str) -> Result<bool> {
        let (password, hash) = (normal(password), hash.to_owned());
        self.blocking(move |argon2| {
            PasswordHash::new(&hash)
                .is_ok_and(|hash| argon2.verify_password(password.as_bytes(), &hash).is_ok())
        })
        .await
    }

    /// As [`Self::verify`], for whoever has no certificate yet: however many come, they take one place of those who log
    /// in.
    pub async fn verify_of_outsider(&self, password: &str, hash: &str) -> Result<bool> {
        let _place = self.outsiders.try_acquire().map_err(|_| {
            refuse(
                Code::LimitExceeded { retry_after_ms: 5_000 },
                "ただいま登録が混み合っています。しばらくしてからもう一度お試しください。",
            )
        })?;
        let _turn =
            self.outsider.acquire().await.map_err(|_| Error::internal("nobody's turn comes any more"))?;
        self.verify(password, hash).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'_>) -> T + Send + 'static,
    ) -> Result<T> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            refuse(
                Code::LimitExceeded { retry_after_ms: 2_000 },
                "Too many people are logging in at this moment: please try again.",
            )
        })?;
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| Error::internal("the password threads have stopped"))?;
        self.runs.fetch_add(1, Ordering::Relaxed);
        let argon2 = self.argon2.clone();
        Ok(tokio::task::spawn_blocking(move || {
            let _held = (permit, place);
            work(&argon2)
        })
        .await?)
    }
}

/// The same characters typed on different keyboards are the same password.
fn normal(password: &str) -> String {
    password.nfkc().collect()
}

/// The rules, as people read them.
pub fn rules(length_min: usize) -> Vec<String> {
    vec![
        format!("{length_min}文字以上にしてください。"),
        "英字の大文字・小文字、数字、記号のうち3種類以上を混ぜてください（13文字以上なら2種類でかまいません）。".to_owned(),
        "氏名、利用者ID、事業所名、同じ文字の繰り返し、よく使われる言葉は使えません。".to_owned(),
        "生年月日のような日付（19400501、S15.5.1 など）は文字数に入りません。日付のほかに、上の決まりを満たしてください。".to_owned(),
        "以前に使ったパスワードは使えません。".to_owned(),
    ]
}

/// Checks a new password against the rules (C7); `names` are words that it must not hold, `now` milliseconds since 1970.
pub fn check_rules(password: &str, length_min: usize, names: &[&str], now: i64) -> Result<()> {
    let weak = |why: &str| Err(refuse(Code::WeakPassword, why));
    let whole = normal(password);
    if whole.len() > PASSWORD_BYTES_MAX {
        return weak("パスワードが長すぎます。");
    }
    if whole.chars().count() < length_min {
        return weak(&format!("パスワードは{length_min}文字以上にしてください。"));
    }
    // Nobody's date of birth is known here, and people's are known to many: a date adds nothing, and the rest must do.
    let password = dates::without(&whole, now);
    let length = password.chars().count();
    if length < length_min {
        return weak(&format!(
            "生年月日のような日付は文字数に入りません。日付のほかに{length_min}文字以上を使ってください。"
        ));
    }
    let kinds = [
        password.chars().any(|c| c.is_lowercase()),
        password.chars().any(|c| c.is_uppercase()),
        password.chars().any(|c| c.is_numeric()),
        password.chars().any(|c| !c.is_alphanumeric()),
        password.chars().any(|c| c.is_alphabetic() && !c.is_ascii()),
    ];
    let kinds = kinds.iter().filter(|kind| **kind).count();
    if kinds < if length >= 13 { 2 } else { 3 } {
        return weak("英字の大文字・小文字、数字、記号のうち3種類以上を混ぜてください。");
    }
    let lower = whole.to_lowercase();
    if names.iter().any(|name| {
        let name = normal(name).to_lowercase().replace(char::is_whitespace, "");
        name.chars().count() >= 2 && lower.contains(&name)
    }) {
        return weak("氏名、利用者ID、事業所名を含むパスワードは使えません。");
    }
    let lower = password.to_lowercase();
    // As guessers do: p@ssw0rd is password.
    let letters: String = lower
        .chars()
        .map(|c| match c {
            '@' | '4' => 'a',
            '0' => 'o',
            '1' | '!' | '|' => 'l',
            '3' => 'e',
            '$' | '5' => 's',
            '7' => 't',
            other => other,
        })
        .filter(|c| c.is_alphanumeric())
        .collect();
    let plain: String = lower.chars().filter(|c| c.is_alphanumeric()).collect();
    let distinct: std::collections::BTreeSet<char> = lower.chars().collect();
    if distinct.len() < 4
        || COMMON.iter().any(|word| {
            [&letters, &plain].iter().any(|text| text.starts_with(word) && text.len() < word.len() + 5)
        })
    {
        return weak("よく使われる言葉や繰り返しのパスワードは使えません。");
    }
    Ok(())
}

/// Beginnings that guessers try first, in lower case with letters and digits only.
const COMMON: &[&str] = &[
    "password",
    "passw0rd",
    "p4ssword",
    "pass1234",
    "qwerty",
    "1qaz2wsx",
    "asdfgh",
    "zxcvbn",
    "abc123",
    "abcd1234",
    "12345678",
    "123456789",
    "11111111",
    "00000000",
    "88888888",
    "iloveyou",
    "letmein",
    "welcome",
    "admin",
    "root",
    "administrator",
    "monkey",
    "dragon",
    "football",
    "baseball",
    "sunshine",
    "princess",
    "login",
    "master",
    "hello",
    "secret",
    "kango",
    "kaigo",
    "houmon",
    "byouin",
    "hospital",
    "nurse",
    "doctor",
    "yakkyoku",
    "zaitaku",
    "sakura",
    "tokyo",
    "nippon",
    "japan",
    "arigato",
    "konnichiwa",
    "test1234",
    "changeme",
    "heya",
    "matrix",
    "element",
    "user",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_without_a_certificate_take_one_place() {
        let passwords = Arc::new(Passwords::new(2, true).unwrap());
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let passwords = Arc::clone(&passwords);
            all.spawn(async move { passwords.verify_of_outsider("x", passwords.decoy()).await.is_ok() });
        }
        let taken = all.join_all().await.into_iter().filter(|taken| *taken).count();
        assert!((OUTSIDERS_WAITING_MAX..200).contains(&taken), "{taken}: the others come again");
        assert_eq!(passwords.runs(), taken as u64);
        assert!(
            !passwords.verify_of_outsider("x", passwords.decoy()).await.unwrap(),
            "places are given back"
        );
    }

    /// 2026-11-26.
    const NOW: i64 = 1_795_662_000_000;

    #[test]
    fn rules_refuse_what_is_guessed_first() {
        let names = ["佐藤花子", "p104217", "Aoba"];
        for bad in [
            "Aa1!",
            "alllowercase",
            "Password123!",
            "佐藤花子Aa1!x",
            "xP104217-x",
            "aobaA1!aoba",
            "aA1!aA1!",
            "Kango2026!",
            "P@ssw0rd",
            "Qw3rty-99",
            // Too little, too plain or too common beside a date.
            "Ume-19400501",
            "Ume-1940/5/1",
            "Ume-S15.5.1-",
            "昭和15年5月1日Ume",
            "umehana-19400501",
            "19400501Password!",
        ] {
            let refused = check_rules(bad, 8, &names, NOW).is_err();
            // "aA1!aA1!" has four distinct lower-cased characters at most.
            assert!(refused, "{bad} was taken");
        }
        for good in ["Ume-hana-37", "correct horse battery", "桜もちを食べたい-2026", "Ume-hana-19400501"]
        {
            assert!(check_rules(good, 8, &names, NOW).is_ok(), "{good} was refused");
        }
    }
}
