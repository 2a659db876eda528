//! Pages of other origins: which may use the API, and what their browsers are told.

use pgoutbox::http::Settings;

use super::{METRICS, started};

const APP: &str = "Origin: https://app.example.com";

#[tokio::test]
async fn pages_of_allowed_origins_may_use_the_api_and_read_what_it_answers() {
    let origins = vec!["https://app.example.com".to_owned()];
    let settings = Settings { origins, token: Some("t".into()), ..Settings::default() };
    let server = started(settings).await;
    let bearer = "Authorization: Bearer t";
    let readable = "access-control-allow-origin: https://app.example.com\r\n";
    for (path, headers, status) in [
        ("/v1/nowhere", vec![APP, bearer], "404"),
        ("/v1/nowhere", vec![APP], "401"),
        ("/v1/ws", vec![APP], "401"),
    ] {
        let answer = server.get(path, &headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {answer}");
        assert!(answer.contains(readable) && answer.contains("vary: origin\r\n"), "{path} {answer}");
        assert!(!answer.contains("access-control-allow-credentials"), "{answer}");
    }
    assert!(server.get("/client.js", &[APP]).await.contains(readable));
    let own = format!("Origin: http://{}", server.address);
    let answer = server.get("/v1/nowhere", &[&own, bearer]).await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("vary: origin\r\n"), "{answer}");
    assert!(!answer.contains("access-control"), "{answer}");
    for origin in ["https://app.example.com.evil.example", "http://app.example.com", "null", "*"] {
        let answer = server.get("/v1/ws", &[&format!("Origin: {origin}"), bearer]).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("access-control"), "{answer}");
    }
    // What is not the API is for pages of no other origin.
    for path in [METRICS, "/livez", "/", "/v1"] {
        assert_eq!(server.status(path, &[APP, bearer]).await, 403, "{path}");
    }
    assert_eq!(server.status("/v1/nowhere", &[APP, &own, bearer]).await, 403);
}

#[tokio::test]
async fn a_browser_that_asks_first_is_told_what_a_page_may_send() {
    let origins = vec!["https://app.example.com".to_owned()];
    let server = started(Settings { origins, token: Some("t".into()), ..Settings::default() }).await;
    let preflight = async |path: &str, origin: &str| {
        let host = server.address;
        let ask = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n";
        server
            .raw(&format!(
                "OPTIONS {path} HTTP/1.1\r\nHost: {host}\r\n{origin}\r\n{ask}Connection: close\r\n\r\n"
            ))
            .await
    };
    let answer = preflight("/v1/stream", APP).await;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    for line in [
        "access-control-allow-origin: https://app.example.com\r\n",
        "access-control-allow-methods: GET, POST, PUT, PATCH, DELETE\r\n",
        "access-control-allow-headers: Authorization, Content-Type, Last-Event-ID\r\n",
        "vary: origin\r\n",
    ] {
        assert!(answer.contains(line), "{line} {answer}");
    }
    for (path, origin) in [("/v1/stream", "Origin: https://evil.example"), (METRICS, APP)] {
        let answer = preflight(path, origin).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("access-control"), "{answer}");
    }
    let own = format!("Origin: http://{}", server.address);
    assert!(preflight("/v1/stream", &own).await.starts_with("HTTP/1.1 401 "), "no page of another origin");
}
