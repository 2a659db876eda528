-- Turn deliveries into dead letters, each with a copy of its event. Deliveries whose lease was lost
-- are not changed.
--   $1 deliveries
--   $2 lease tokens of this relay
--   $3 reasons, in the order of $1
--   $4 status codes, in the order of $1
--   $5 answers, in the order of $1
with dying as materialized (
    delete from outbox.deliveries as delivery
     where delivery.id = any ($1::bigint[])
       and delivery.lease_token = any ($2::uuid[])
    returning delivery.id, delivery.subscription_id, delivery.position, delivery.created_at,
              delivery.attempt
),
buried as (
    insert into outbox.dead_letters (
        subscription_id, subscription, reason, status, answer, attempts, event_id, position,
        created_at, topic, key, payload, headers, organization, source, user_id, priority,
        schema_version)
    select dying.subscription_id,
           coalesce((select subscription.name
                       from outbox.subscriptions as subscription
                      where subscription.id = dying.subscription_id), 'deleted'),
           ($3::text[])[array_position($1::bigint[], dying.id)],
           ($4::integer[])[array_position($1::bigint[], dying.id)],
           ($5::text[])[array_position($1::bigint[], dying.id)],
           dying.attempt, event.id, dying.position, dying.created_at,
           coalesce(event.topic, 'unknown'), event.key, coalesce(event.payload, 'null'),
           coalesce(event.headers, '{}'), event.organization, event.source, event.user_id,
           coalesce(event.priority, 0), event.schema_version
      from dying
      left join outbox.events as event  -- a deleted event leaves a dead letter too
        on event.position = dying.position
       and event.created_at = dying.created_at
)
select dying.id from dying
