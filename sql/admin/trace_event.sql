-- One event, from the log or else from a dead letter, with what routing reads of it. A payload that
-- cannot be read is null.
--   $1 id
select event.id, event.position, event.created_at, event.topic, event.key, event.organization,
       event.source, event.user_id, event.schema_version, event.headers::text as headers,
       case when event.xid is null
                 or outbox_internal.first_unreadable(array[event.position], event.created_at,
                                                     event.created_at) is null
            then coalesce(event.payload::text, 'null') end as payload,
       event.priority, event.deliver_after,
       event.xid::text as transaction,
       outbox_internal.is_routed(event) as is_routed
  from outbox_internal.traced_event($1::uuid) as event;
