//! Ids of rows, as types: one cannot be taken for another.

id! {
    /// Id of a row of `outbox.subscriptions`.
    SubscriptionId
}

id! {
    /// Id of a row of `outbox.deliveries`.
    DeliveryId
}

id! {
    /// Id of a row of `outbox.pages`.
    PageId
}

id! {
    /// Id of a row of `outbox.replays`.
    ReplayId
}
