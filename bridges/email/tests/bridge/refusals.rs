//! What is refused for good, and by whom.

use serde_json::json;

use crate::{
    harness::{ADDRESS, City, posted},
    smtp::{Plan, Seen},
};

#[tokio::test]
async fn a_refused_address_is_told_to_the_server_and_rejected_from_then_on() {
    let mut city = City::start_with(|config| config.digest_seconds = 0).await;
    city.smtp.plan(Plan::Rcpt("550 5.1.1 No such user"));
    assert_eq!(city.notify(posted("$one")).await, json!([]));
    let report = city.homeserver.next_report().await;
    let body = json!({"address": ADDRESS, "account": "@p100001:heya.example.jp", "code": 550});
    assert_eq!(report, ("refused".to_owned(), body));
    assert_eq!(city.notify(posted("$two")).await, json!([ADDRESS]));
    city.restart().await;
    assert_eq!(city.notify(posted("$three")).await, json!([ADDRESS]));

    // The person sets up the same address again: a new pusher, a new chance.
    let mut again = posted("$four");
    again["devices"][0]["data"]["jp.heya.pusher"] = json!("pusher-2");
    assert_eq!(city.notify(again).await, json!([]));
    assert_eq!(city.smtp.next().await, Seen::Refused("550 5.1.1 No such user".to_owned()));
    city.smtp.next_mail().await;
}

#[tokio::test]
async fn what_is_no_address_is_rejected_at_once() {
    let mut city = City::start_with(|config| config.digest_seconds = 0).await;
    for address in ["a@example.jp\r\nRCPT TO:<b@example.jp>", "a@example.jp, b@example.jp", "nobody", ""] {
        let mut notification = posted("$one");
        notification["devices"][0]["pushkey"] = json!(address);
        assert_eq!(city.notify(notification).await, json!([address]));
    }
    city.notify(posted("$one")).await;
    assert_eq!(city.smtp.next_mail().await.to, ADDRESS);
    city.smtp.assert_silent();
}

#[tokio::test]
async fn a_refusal_of_the_city_itself_costs_nobody_a_mail() {
    let mut city = City::start_with(|config| config.digest_seconds = 0).await;
    for plan in [Plan::Greeting("554 5.7.1 Not you"), Plan::Rcpt("554 5.7.1 Relay access denied")] {
        city.smtp.plan(plan);
    }
    city.notify(posted("$one")).await;
    assert!(matches!(city.smtp.next().await, Seen::Refused(_)));
    city.pass_retry_pause().await;
    assert!(matches!(city.smtp.next().await, Seen::Refused(_)));
    city.pass_retry_pause().await;
    city.smtp.next_mail().await;
    city.homeserver.assert_silent();
}

#[tokio::test]
async fn an_address_that_is_never_accepted_is_given_up_and_told() {
    let mut city = City::start_with(|config| config.digest_seconds = 0).await;
    city.smtp.plan(Plan::Rcpt("450 4.2.1 Later"));
    city.notify(posted("$one")).await;
    assert!(matches!(city.smtp.next().await, Seen::Refused(_)));
    city.settled().await;
    city.smtp.plan(Plan::Rcpt("450 4.2.1 Later"));
    city.advance(3 * 24 * 3600);
    assert!(matches!(city.smtp.next().await, Seen::Refused(_)));
    assert_eq!(city.homeserver.next_report().await.1["code"], 450);
}
