//! `/createRoom` and `/rooms/…`.

use crate::http::route::Routes;

mod create;
mod history;
mod initial;
mod members;
mod outside;
mod receipts;
mod relations;
mod send;
mod state;
mod upgrade;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    let mut routes = routes;
    for add in [
        create::routes,
        members::routes,
        send::routes,
        state::routes,
        history::routes,
        relations::routes,
        receipts::routes,
        outside::routes,
        upgrade::routes,
        initial::routes,
    ] {
        routes = add(routes);
    }
    routes
}
