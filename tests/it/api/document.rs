//! The OpenAPI document and the router have the same routes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Api, resources};
use crate::{
    docs::tables::assert_table,
    support::Database,
    tidy::{code, files},
};

/// Methods and paths of the document, with their summaries.
fn operations(document: &Value) -> Vec<(String, String)> {
    let paths = document["paths"].as_object().unwrap();
    let each = paths.iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().map(move |(method, operation)| {
            let summary = operation["summary"].as_str().unwrap_or_default().to_owned();
            (format!("{} {path}", method.to_uppercase()), summary)
        })
    });
    each.collect()
}

#[tokio::test]
async fn the_document_is_served_and_names_every_route_with_its_methods() {
    let database = Database::new().await;
    let api = Api::of(&database).await;
    let answer = api.request("GET", "/v1/openapi.json").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json");
    let served: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(served, api.document);
    assert_eq!(served["openapi"], "3.1.0");
    for (path, methods) in served["paths"].as_object().unwrap() {
        // The router says which methods it has.
        let called = path
            .replace("{id}", "7")
            .replace("{name}", "a")
            .replace("{topic}", "a")
            .replace("{version}", "1")
            .replace("{organization}", "a");
        let refused = api.send("PATCH", &called, api.request("PATCH", &called)).await;
        assert_eq!(refused.problem(405).0, "method-not-allowed");
        let allowed: BTreeSet<String> = refused.headers["allow"]
            .to_str()
            .unwrap()
            .split(',')
            .map(|method| method.trim().to_lowercase())
            .filter(|method| method != "head")
            .collect();
        let documented: BTreeSet<String> = methods.as_object().unwrap().keys().cloned().collect();
        assert_eq!(allowed, documented, "{path}");
    }
    let ids: BTreeSet<&str> = served["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|methods| methods.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), operations(&served).len(), "each operation has an id of its own");
    api.close().await;
    database.drop().await;
}

#[test]
fn every_handler_is_in_the_document_and_every_operation_is_tested() {
    let document = serde_json::to_value(pgoutbox::http::v1::document()).unwrap();
    let operations = operations(&document);
    let source: String = files("src/http/v1", ".rs").values().map(|text| code(text)).collect();
    assert_eq!(source.matches("#[utoipa::path(").count(), operations.len(), "a handler is not added");
    assert_eq!(source.matches("routes.add(").count(), operations.len());
    // The document itself, and what answers that there is no such path.
    let routed = source.matches(".route(").count();
    assert_eq!(routed, 3, "a route that is added by hand is in no document");
    let tested: BTreeSet<&str> = resources::COVERED.iter().flat_map(|part| part.iter().copied()).collect();
    let known: BTreeSet<&str> = operations.iter().map(|(operation, _)| operation.as_str()).collect();
    assert_eq!(tested, known);
    assert!(operations.iter().all(|(_, summary)| !summary.is_empty()));
}

#[test]
fn the_tables_of_the_page_are_those_of_the_document_and_of_the_problems() {
    let document = serde_json::to_value(pgoutbox::http::v1::document()).unwrap();
    let rows: Vec<String> = operations(&document)
        .iter()
        .map(|(operation, summary)| format!("| `{operation}` | {} |", summary.trim_end_matches('.')))
        .collect();
    assert_table("docs/reference/api.md", "routes", "| request | does |", &rows);
    let rows: Vec<String> = pgoutbox::http::v1::Kind::ALL
        .iter()
        .map(|kind| format!("| `{}` | {} | {} |", kind.code(), kind.status().as_u16(), kind.meaning()))
        .collect();
    assert_table("docs/reference/api.md", "problems", "| type | status | meaning |", &rows);
}
