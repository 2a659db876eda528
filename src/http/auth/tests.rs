//! Tests of the guard: who a handler believes to be asked by, and what it sees of a token.

use axum::{Router, body::Body, extract::Extension, http::HeaderMap, middleware, routing::any};
use http_body_util::BodyExt as _;
use tower_service::Service as _;

use super::*;

const LOOPBACK: &str = "127.0.0.1:7411";

fn guard(listen: &str, change: impl FnOnce(&mut Settings)) -> Guard {
    let mut settings = Settings::default();
    change(&mut settings);
    Guard::new(listen.parse().unwrap(), &settings)
}

/// What a handler behind the guard sees: the caller, the address and the headers; or the status.
async fn seen(guard: Guard, path: &str, headers: &[(&str, &str)]) -> Result<String, u16> {
    async fn handler(caller: Option<Extension<Caller>>, uri: axum::http::Uri, all: HeaderMap) -> String {
        let caller = caller.map(|Extension(caller)| format!("{caller:?}"));
        format!("{} {uri} {all:?}", caller.as_deref().unwrap_or("nobody"))
    }
    let mut router =
        Router::new().fallback(any(handler)).layer(middleware::from_fn_with_state(Arc::new(guard), check));
    let mut request = Request::builder().uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = router.call(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    if status == 200 { Ok(body) } else { Err(status) }
}

#[tokio::test]
async fn on_loopback_without_a_token_everybody_is_let_in_and_elsewhere_nobody() {
    for path in ["/metrics", "/v1/ws", "/v1/stream?topics=a"] {
        assert!(seen(guard(LOOPBACK, |_| {}), path, &[]).await.unwrap().starts_with("Open "), "{path}");
        assert_eq!(seen(guard("0.0.0.0:7411", |_| {}), path, &[]).await, Err(401), "{path}");
    }
    assert!(seen(guard("0.0.0.0:7411", |_| {}), "/livez", &[]).await.is_ok());
    let probes = Guard::of_probes("0.0.0.0:7413".parse().unwrap());
    assert!(seen(probes, "/anything", &[]).await.unwrap().starts_with("nobody "));
}

#[tokio::test]
async fn no_handler_sees_a_token_wherever_it_was_sent() {
    let secret = "s3cret.t0ken";
    let operators = |settings: &mut Settings| settings.token = Some(secret.into());
    let bearer = format!("Bearer {secret}");
    let protocols = format!("pgoutbox, bearer.{secret}");
    for (path, header) in [
        ("/metrics", Some(("authorization", bearer.as_str()))),
        ("/v1/ws", Some(("sec-websocket-protocol", protocols.as_str()))),
        ("/v1/ws?access_token=s3cret.t0ken", None),
        ("/v1/stream?topics=a&access_token=s3cret.t0ken&keys=k", None),
        ("/v1/stream?access%5Ftoken=s3cret%2Et0ken", None),
        ("/livez?access_token=s3cret.t0ken", Some(("authorization", bearer.as_str()))),
    ] {
        let headers: Vec<_> = header.into_iter().collect();
        let seen = seen(guard(LOOPBACK, operators), path, &headers).await.unwrap();
        assert!(!seen.contains("s3cret") && !seen.contains("s3cret%2E"), "{seen}");
        let who = if path.starts_with("/livez") { "nobody " } else { "Operator " };
        assert!(seen.starts_with(who), "{seen}");
    }
    let query = "/v1/stream?topics=a&access_token=s3cret.t0ken&keys=k";
    let query = seen(guard(LOOPBACK, operators), query, &[]).await.unwrap();
    assert!(query.contains(" /v1/stream?topics=a&keys=k "), "{query}");
    let rest = seen(guard(LOOPBACK, operators), "/v1/ws", &[("sec-websocket-protocol", &protocols)]).await;
    assert!(rest.as_ref().unwrap().contains("\"sec-websocket-protocol\": \"pgoutbox\""), "{rest:?}");
}

#[tokio::test]
async fn a_token_is_taken_from_the_query_or_a_subprotocol_only_where_a_browser_needs_it() {
    let operators = |settings: &mut Settings| settings.token = Some("t".into());
    let protocol = ("sec-websocket-protocol", "pgoutbox, bearer.t");
    for path in ["/metrics?access_token=t", "/v1/status?access_token=t", "/v1/ws/?access_token=t"] {
        assert_eq!(seen(guard(LOOPBACK, operators), path, &[protocol]).await, Err(401), "{path}");
    }
    assert_eq!(seen(guard(LOOPBACK, operators), "/v1/stream", &[protocol]).await, Err(401));
    for wrong in ["bearer.", "bearer.u", "Bearer.t", "t", "pgoutbox"] {
        let protocol = ("sec-websocket-protocol", wrong);
        assert_eq!(seen(guard(LOOPBACK, operators), "/v1/ws", &[protocol]).await, Err(401), "{wrong}");
    }
}

#[tokio::test]
async fn two_different_tokens_are_refused_and_the_same_one_twice_is_not() {
    let operators = |settings: &mut Settings| settings.token = Some("t".into());
    let (right, wrong) = (("authorization", "Bearer t"), ("authorization", "Bearer u"));
    let protocol = ("sec-websocket-protocol", "bearer.t");
    for (path, headers, expected) in [
        ("/v1/ws?access_token=t", vec![right, protocol], Ok(())),
        ("/v1/ws?access_token=t&access_token=t", vec![], Ok(())),
        ("/v1/ws?access_token=u", vec![right], Err(400)),
        ("/v1/ws?access_token=t", vec![wrong], Err(400)),
        ("/v1/ws", vec![wrong, protocol], Err(400)),
        ("/v1/ws?access_token=u", vec![protocol], Err(400)),
        ("/v1/ws?access_token=t&access_token=u", vec![], Err(400)),
        // A header that holds no token, or two of them, are no reason to look elsewhere.
        ("/v1/ws?access_token=t", vec![("authorization", "Basic dDp0")], Err(401)),
        ("/v1/ws", vec![right, right], Err(401)),
    ] {
        let answer = seen(guard(LOOPBACK, operators), path, &headers).await;
        assert_eq!(answer.map(drop), expected, "{path} {headers:?}");
    }
}

#[tokio::test]
async fn on_loopback_too_a_jwt_that_is_configured_is_required() {
    let jwt = |settings: &mut Settings| {
        settings.jwt = Some(Jwt { secret: Some("secret".into()), ..Jwt::default() });
    };
    for path in ["/metrics", "/v1/ws", "/v1/stream", "/anything"] {
        assert_eq!(seen(guard(LOOPBACK, jwt), path, &[]).await, Err(401), "{path}");
    }
    for path in ["/livez", "/readyz", "/client.js"] {
        assert!(seen(guard(LOOPBACK, jwt), path, &[]).await.unwrap().starts_with("nobody "), "{path}");
    }
}
