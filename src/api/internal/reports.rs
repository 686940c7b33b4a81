//! What people have reported (通報), with the reasons: on the internal listener, for whoever follows them up.

use http::Method;
use ruma::RoomId;
use serde_json::{Value, json};

use super::city;
use crate::{error::invalid, http::route::Routes, store};

/// Reports of one answer.
const PAGE_MAX: i64 = 100;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.at(Method::GET, "/_heya/v1/reports", |server, call| async move {
        city(&server, &call)?;
        let before = call.query("before").map(|n| n.parse().map_err(|_| invalid("before is no number.")));
        let before = before.transpose()?.unwrap_or(i64::MAX);
        let mut conn = server.db.read().await?;
        let mut reports: Vec<Value> = Vec::new();
        for report in store::reports::newest(&mut conn, before, PAGE_MAX).await? {
            let number = match <&RoomId>::try_from(report.room_id.as_str()) {
                Ok(room_id) => store::rooms::row(&mut conn, room_id).await?.and_then(|row| row.room_number),
                Err(_) => None,
            };
            let mut told = json!({
                "id": report.id, "at": report.at, "reporter": report.reporter, "reason": report.reason,
            });
            for (field, value) in
                [("room_id", report.room_id), ("event_id", report.event_id), ("user_id", report.user_id)]
            {
                if !value.is_empty() {
                    told[field] = value.into();
                }
            }
            if let Some(number) = number {
                told["room_number"] = number.into();
            }
            reports.push(told);
        }
        Ok(json!({"reports": reports}).into())
    })
}
