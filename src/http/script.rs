//! `/client.js`: the module with which browsers follow events, the same for everybody.

use std::sync::LazyLock;

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use sha2::{Digest as _, Sha256};

const MODULE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/javascript/index.js"));

/// Answers with the module, or that the caller has it already.
pub(super) async fn client(headers: HeaderMap) -> Response {
    static TAG: LazyLock<String> = LazyLock::new(|| {
        let hash = Sha256::digest(MODULE);
        format!("\"{}\"", hash[..12].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    });
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known.flat_map(|value| value.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == *TAG
    });
    let mut answer = if is_known { StatusCode::NOT_MODIFIED.into_response() } else { MODULE.into_response() };
    for (name, value) in [
        (header::CONTENT_TYPE, "text/javascript; charset=utf-8"),
        (header::CACHE_CONTROL, "public, max-age=3600"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::ETAG, TAG.as_str()),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}
