//! Schemas of types whose JSON says less than their Rust.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat,
        schema::{SchemaType, Type},
    },
};

use crate::{
    delivery::SubscriptionId,
    event::{JsonText, Position},
};

impl PartialSchema for JsonText {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some("Any JSON.")).into()
    }
}

impl ToSchema for JsonText {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Json")
    }
}

fn number(description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .description(Some(description))
        .into()
}

impl PartialSchema for Position {
    fn schema() -> RefOr<Schema> {
        number("Place in the log.")
    }
}

impl ToSchema for Position {}

impl PartialSchema for SubscriptionId {
    fn schema() -> RefOr<Schema> {
        number("Id of a subscription.")
    }
}

impl ToSchema for SubscriptionId {}
