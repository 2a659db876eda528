-- Events that the current transaction has published, in the order of publishing.
select event.id, event.position, event.created_at, event.topic, event.key,
       event.payload::text as payload, event.headers::text as headers, event.organization,
       event.source, event.user_id, event.schema_version
  from outbox.published() as event
