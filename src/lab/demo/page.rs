//! The page with the shop's orders, live.

use axum::{
    Router,
    http::{HeaderName, header},
    routing::get,
};

/// Path of the page.
pub(super) const PATH: &str = "/demo";
/// Nothing from elsewhere, and no script or style in the page itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page and its files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route(PATH, get(async || file("text/html; charset=utf-8", include_str!("page.html"))))
        .route("/demo/page.js", get(async || file("text/javascript; charset=utf-8", include_str!("page.js"))))
        .route("/demo/page.css", get(async || file("text/css; charset=utf-8", include_str!("page.css"))))
}

fn file(kind: &'static str, text: &'static str) -> ([(HeaderName, &'static str); 4], &'static str) {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
