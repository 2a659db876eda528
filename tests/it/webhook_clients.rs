//! Independent libraries verify and read our requests: Standard Webhooks signatures, CloudEvents in every
//! form.

use pgoutbox::{
    sink::{Registry, egress::Egress, secret::Secrets},
    sinks::webhook::Webhook,
};
use serde_json::{Value, json};

use crate::support::{Good, clients, deliveries::deliveries};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn registry() -> Registry {
    let egress =
        Egress { allow: vec!["127.0.0.1/32".parse().unwrap()], allow_http: true, ..Egress::default() };
    let secrets = Secrets::with_environment(None, |_| Some(SECRET.into()));
    let mut registry = pgoutbox::sinks::registry();
    registry.add(Webhook::new(&egress, secrets).unwrap());
    registry
}

#[tokio::test(flavor = "multi_thread")]
async fn libraries_in_python_and_node_verify_and_read_every_form_of_body() {
    let mut receiver = Good::start().await;
    let mut expected = Vec::new();
    for form in [
        json!({}),
        json!({"body": "cloudevents"}),
        json!({"body": "cloudevents-binary"}),
        json!({"body": "cloudevents", "batch": {"max": 3}}),
    ] {
        let mut config = json!({"url": receiver.url, "secret": "env:PGOUTBOX_SECRET_SHOP"});
        config.as_object_mut().unwrap().extend(form.as_object().unwrap().clone());
        let is_batch = config.get("batch").is_some();
        let deliveries = deliveries(&registry(), "webhook", config, if is_batch { 3 } else { 1 });
        deliveries.outlet.send(&deliveries).await;
        expected.extend(deliveries.iter().map(|delivery| {
            let event = &delivery.event;
            let data: Value = serde_json::from_str(&event.payload).unwrap();
            json!({"id": event.id, "type": event.topic, "data": data})
        }));
    }
    let requests: Vec<Value> = receiver
        .take(4)
        .await
        .iter()
        .map(|request| {
            let headers: serde_json::Map<_, _> = request
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap())))
                .collect();
            json!({"headers": headers, "body": request.body})
        })
        .collect();
    let requests = Value::from(requests).to_string();
    let settings = [("SECRET", SECRET), ("REQUESTS", requests.as_str())];
    let read = |text: String| -> Vec<Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(read(clients::python("webhook_reads.py", &settings).await), expected);
    assert_eq!(read(clients::node("webhook_reads.mjs", &settings).await), expected);
}
