//! What follows a word of action (追加, 外し, 終了 …) and what it makes of the sentence: a request, a wish, a
//! report of the past, a negation. Japanese says this at the end, so only the end is read.

/// How a clause ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// 〜してください, 〜をお願いします
    Request,
    /// 〜したいです, 〜できますか, 〜してもいいですか, or the bare word
    Wish,
    /// 〜します, 〜することになりました
    Statement,
    /// 〜してほしいと言われました: somebody else's wish
    Reported,
    /// 〜して、 … : the end of the sentence decides
    Chain,
    /// Past, negation, condition, question, or another sense
    Other,
}

fn starts(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.starts_with(word))
}

fn strip<'a>(text: &'a str, words: &[&str]) -> Option<&'a str> {
    words.iter().find_map(|word| text.strip_prefix(word))
}

/// After a noun of action: 追加, 招待, 削除, 除外, 終了, 閉鎖, 開設.
pub(crate) fn after_noun(rest: &str) -> Tail {
    let mut rest = rest.trim_start();
    // 終了でお願いします, 終了する方向でお願いします
    if let Some(next) = rest.strip_prefix('で').filter(|next| next.starts_with("お願い")) {
        rest = next;
    }
    if rest.starts_with("する方向でお願い") {
        return Tail::Wish;
    }
    // 追加のお手続きを、追加の方を、追加について… only the first two lead on to a request.
    while let Some(next) =
        strip(rest, &["お手続き", "手続き", "手続", "処理", "対応", "申請", "依頼", "作業", "の方", "のほう"])
    {
        rest = next.trim_start();
    }
    if let Some(next) = strip(rest, &["は", "も"])
        && starts(
            next,
            &[
                "不要",
                "いりません",
                "要りません",
                "必要あり",
                "必要な",
                "結構",
                "大丈夫",
                "しな",
                "なし",
                "無し",
                "やめ",
            ],
        )
    {
        return Tail::Other;
    }
    if let Some(next) = strip(rest, &["の", "を", "も", "、", "は"]) {
        rest = next.trim_start_matches([' ', '、']);
    }
    while let Some(next) =
        strip(rest, &["お手続き", "手続き", "手続", "処理", "対応", "申請", "依頼", "作業"])
    {
        rest = strip(next, &["を", "の", "も"]).unwrap_or(next).trim_start();
    }
    // Adverbs between: 追加を早急にお願いします
    if let Some(next) = strip(
        rest,
        &[
            "至急",
            "早急に",
            "早めに",
            "どうぞ",
            "何卒",
            "なにとぞ",
            "よろしく",
            "宜しく",
            "ぜひ",
            "是非",
            "、",
        ],
    ) {
        rest = next.trim_start_matches([' ', '、']);
    }
    if let Some(next) = strip(rest, &["お願い", "御願い", "おねがい", "願い"]) {
        return after_onegai(next);
    }
    if let Some(next) = strip(rest, &["希望", "依頼"]) {
        return if starts(next, &["します", "いたします", "致します", "です"]) {
            closed(next, Tail::Request)
        } else {
            Tail::Other
        };
    }
    if starts(rest, &["ください", "下さい"]) {
        return after_te(rest);
    }
    if starts(
        rest,
        &[
            "できますか",
            "できませんか",
            "できますでしょうか",
            "できるでしょうか",
            "可能でしょうか",
            "可能ですか",
            "が必要です",
            "必要です",
        ],
    ) {
        return Tail::Wish;
    }
    if let Some(next) = strip(rest, &["させて", "して", "致して", "いたして"]) {
        return after_te(next);
    }
    if starts(rest, &["したい", "したく", "いたしたく", "致したく", "させたい"]) {
        return after_tai(
            strip(rest, &["したい", "したく", "いたしたく", "致したく", "させたい"]).unwrap_or(""),
        );
    }
    if let Some(next) = strip(
        rest,
        &[
            "します",
            "いたします",
            "致します",
            "することにな",
            "することと",
            "する旨",
            "とします",
            "となります",
            "になります",
        ],
    ) {
        return after_statement(next);
    }
    if ends_here(rest) { Tail::Wish } else { Tail::Other }
}

/// After the te-form: 追加して|…, 外して|…, or before ください.
pub(crate) fn after_te(rest: &str) -> Tail {
    let rest = rest.trim_start();
    if ends_here(rest) {
        return Tail::Wish;
    }
    if let Some(next) = strip(rest, &["、", ","]) {
        return if next.trim().is_empty() { Tail::Wish } else { Tail::Chain };
    }
    if let Some(next) = strip(rest, &["ください", "下さい", "頂戴", "ちょうだい"]) {
        if starts(next, &["まし", "った", "いまし", "り", "って", "いて", "る", "れ"]) {
            // くださると助かります, くださいました, くださりありがとう
            return if starts(next, &["ると", "れば"]) { Tail::Request } else { Tail::Other };
        }
        return closed(next, Tail::Request);
    }
    if starts(rest, &["くださると", "下さると", "くだされば", "下されば", "くださいますよう", "くださいませ"])
    {
        return Tail::Request;
    }
    if starts(rest, &["くださ", "下さ"]) {
        return Tail::Other;
    }
    if let Some(next) = strip(
        rest,
        &["いただけ", "頂け", "戴け", "もらえ", "貰え", "いただくことは", "頂くことは", "もらうことは"],
    ) {
        return after_potential(next);
    }
    if let Some(next) = strip(rest, &["いただき", "頂き", "戴き", "もらい", "貰い"]) {
        return match strip(next, &["たい", "たく"]) {
            Some(next) if starts(next, &["くな", "かった", "と言", "とのこと", "そう"]) => {
                reported_or_other(next)
            }
            Some(next) => closed(next, Tail::Request),
            None => Tail::Other,
        };
    }
    if let Some(next) = strip(rest, &["ほしい", "欲しい", "ほしく", "欲しく", "ほしゅう"]) {
        return if starts(next, &["な", "あり", "かった"]) {
            Tail::Other
        } else {
            closed(next, Tail::Request)
        };
    }
    if starts(rest, &["ほしか", "欲しか"]) {
        return Tail::Other;
    }
    // 終了していただいて構いません: a permission, perhaps meant as a request.
    if let Some(next) = strip(rest, &["いただいて", "頂いて", "もらって", "貰って"])
        && starts(next.trim_start_matches('も'), &["構", "かま", "大丈夫", "結構", "よろし", "宜し", "いい"])
    {
        return Tail::Wish;
    }
    if starts(
        rest,
        &[
            "くれますか",
            "くれませんか",
            "くれると",
            "くれないでしょうか",
            "くれないか",
            "やってください",
            "やって下さい",
        ],
    ) {
        return Tail::Request;
    }
    if starts(rest, &["お願いします", "お願いいたします", "お願い致します"]) {
        return Tail::Request;
    }
    if starts(
        rest,
        &[
            "もいい",
            "も良い",
            "もよろしい",
            "も宜しい",
            "も大丈夫",
            "もかまい",
            "も構い",
            "よろしい",
            "いいです",
            "良い",
        ],
    ) {
        return if rest.contains('か') { Tail::Wish } else { Tail::Other };
    }
    if starts(
        rest,
        &["おいてください", "おいて下さい", "おいていただけ", "おいて頂け", "おいてもらえ", "おいてほしい"],
    ) {
        return Tail::Request;
    }
    Tail::Other
}

/// After いただけ, もらえ: 〜ますか asks for it, 〜ました thanks for it.
fn after_potential(next: &str) -> Tail {
    if starts(
        next,
        &[
            "ました",
            "た後",
            "たので",
            "たのは",
            "たよう",
            "ておりません",
            "ていません",
            "ていない",
            "なかった",
            "ませんでした",
        ],
    ) {
        return Tail::Other;
    }
    let asks = [
        "ますか",
        "ませんか",
        "ますでしょうか",
        "ませんでしょうか",
        "ないでしょうか",
        "ないですか",
        "ないか",
        "るでしょうか",
        "るとあり",
        "ると助",
        "ると幸",
        "ると嬉",
        "るとうれ",
        "れば",
        "たら",
        "ますと",
        "ますよう",
        "ますでし",
        "可能",
        "できますか",
        "できないでしょうか",
    ];
    if starts(next, &asks) { closed(next, Tail::Request) } else { Tail::Other }
}

fn after_onegai(next: &str) -> Tail {
    let next = next.trim_start();
    if let Some(next) = strip(
        next,
        &[
            "ます",
            "します",
            "いたします",
            "致します",
            "申し上げます",
            "申しあげます",
            "できますか",
            "できますでしょうか",
            "できませんか",
            "できないでしょうか",
            "できませんでしょうか",
            "できればと",
            "できたら",
            "できると",
            "したい",
            "したく",
            "いたしたく",
        ],
    ) {
        return closed(next, Tail::Request);
    }
    if ends_here(next) { Tail::Request } else { Tail::Other }
}

/// After したい: one's own wish, asked back about; others' wishes are reports.
fn after_tai(next: &str) -> Tail {
    if starts(next, &["な", "あり", "かった", "場合", "時", "とき", "方は", "人は", "なら"])
    {
        return Tail::Other;
    }
    closed(next, Tail::Wish)
}

fn after_statement(next: &str) -> Tail {
    // 〜しますか, 〜しますが、〜しますので are questions and lead-ins; a plain end may be meant as a request.
    if starts(next, &["か", "が", "けど", "けれど", "と", "ね?"]) {
        Tail::Other
    } else {
        Tail::Statement
    }
}

/// After a complete request: 〜してくださいと言われました is no request, 〜してほしい場合は neither.
fn closed(next: &str, tail: Tail) -> Tail {
    let next = next.trim_start_matches(['、', ' ', '」', '』', '"']);
    if starts(next, &["という話", "という連絡", "という意見", "といった", "っていう"]) {
        return Tail::Reported;
    }
    let quoted = strip(next, &["です", "ます", "だ", ""]).unwrap_or(next);
    let quoted = strip(quoted, &["と", "って", "とか"]);
    // 〜と言われました, 〜と田中先生から指示がありました; but 〜ほしいと思います is one's own word.
    const SAYING: [&str; 17] = [
        "言",
        "いわ",
        "話",
        "のこと",
        "頼",
        "伝",
        "お願い",
        "申し",
        "書",
        "聞",
        "要望",
        "希望",
        "連絡",
        "依頼",
        "指示",
        "電話",
        "送",
    ];
    // 〜とお願いしました: the request was made elsewhere, by whoever writes.
    const MADE: [&str; 7] =
        ["お願いし", "依頼し", "頼みまし", "頼んで", "伝えまし", "連絡しまし", "お伝えし"];
    if quoted.is_some_and(|said| MADE.iter().any(|word| said.contains(word))) {
        return Tail::Other;
    }
    if let Some(said) = quoted
        && !starts(said, &["思い", "思って", "存じ", "助か", "幸い", "嬉し"])
        && (SAYING.iter().any(|word| said.contains(word))
            || starts(said, &["ご家族", "家族", "ご本人", "本人"]))
    {
        return Tail::Reported;
    }
    if starts(
        next,
        &[
            "場合",
            "時は",
            "ときは",
            "とき",
            "際は",
            "人は",
            "方は",
            "かたは",
            "そう",
            "らしい",
            "みたい",
            "ようです",
            "なら",
            "という",
        ],
    ) {
        return reported_or_other(next);
    }
    tail
}

fn reported_or_other(next: &str) -> Tail {
    if starts(next, &["と言", "とのこと", "そう", "らしい", "みたい", "ようです"]) {
        Tail::Reported
    } else {
        Tail::Other
    }
}

/// Nothing follows but particles and signs.
pub(crate) fn ends_here(rest: &str) -> bool {
    let rest = rest.trim_matches(|c: char| {
        c.is_whitespace() || matches!(c, '。' | '!' | '?' | '.' | '、' | '~' | '〜' | 'ー' | '♪' | ')' | '」')
    });
    matches!(rest, "" | "ね" | "よ" | "な" | "です" | "を" | "で")
}
