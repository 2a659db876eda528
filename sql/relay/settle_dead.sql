-- Turn deliveries into dead letters, each with a copy of its event. Deliveries whose lease was lost
-- are not changed, and those of a subscription that was deleted are only deleted. Of an event that
-- could not be read only what routing read is copied, and without its id it is not redriven.
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
              delivery.attempt, delivery.replay_id
),
buried as (
    insert into outbox.dead_letters (
        subscription_id, subscription, reason, status, answer, attempts, event_id, position,
        created_at, topic, key, payload, headers, organization, source, user_id, priority,
        schema_version, replay_id)
    select dying.subscription_id, subscription.name, dead.reason,
           ($4::integer[])[array_position($1::bigint[], dying.id)],
           ($5::text[])[array_position($1::bigint[], dying.id)],
           dying.attempt, case when dead.was_read then event.id end, dying.position,
           coalesce(event.created_at, dying.created_at), coalesce(event.topic, 'unknown'),
           event.key,
           coalesce(case when dead.was_read then event.payload end, 'null'),
           coalesce(case when dead.was_read then event.headers end, '{}'),
           event.organization, event.source, event.user_id, coalesce(event.priority, 0),
           event.schema_version, dying.replay_id
      from dying
      join outbox.subscriptions as subscription on subscription.id = dying.subscription_id
     cross join lateral (
           select said.reason, said.reason <> 'event_unreadable' as was_read
             from (select ($3::text[])[array_position($1::bigint[], dying.id)] as reason) as said
           ) as dead
      left join outbox.events as event  -- a deleted event leaves a dead letter too
        on event.position = dying.position
       and event.created_at >= case when dead.was_read then dying.created_at else '-infinity' end
       and event.created_at <= case when dead.was_read then dying.created_at else 'infinity' end
    returning id, subscription_id, key
),
parked as (
    insert into outbox.parked_keys (subscription_id, key, dead_letter_id)
    select buried.subscription_id, buried.key, buried.id
      from buried
      join outbox.subscriptions as subscription
        on subscription.id = buried.subscription_id
       and subscription.ordering = 'key'
       and subscription.on_exhausted = 'park'
     where buried.key is not null
    on conflict do nothing
)
select dying.id from dying
