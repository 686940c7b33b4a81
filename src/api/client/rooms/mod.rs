//! `/createRoom` and `/rooms/…`.

use crate::http::route::Routes;

mod create;
mod history;
mod members;
mod receipts;
mod relations;
mod send;
mod state;

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
    ] {
        routes = add(routes);
    }
    routes
}
