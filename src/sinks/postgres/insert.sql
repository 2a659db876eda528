-- Insert events into the inbox of another database. Existing ones are kept.
--   $1 sources   $2 events as JSON, in the same order
--
-- The name of the table is replaced if the subscription names another one.
with sent as materialized (  -- materialized, so that each text is parsed once
    select sent.source, sent.event::jsonb as event, sent.n
      from unnest($1::text[], $2::text[]) with ordinality as sent (source, event, n)
)
insert into outbox.inbox (source, id, topic, key, payload, headers, organization, user_id, schema_version, created_at)
select sent.source,
       (sent.event ->> 'id')::uuid,
       sent.event ->> 'topic',
       sent.event ->> 'key',
       sent.event -> 'payload',
       sent.event -> 'headers',
       sent.event ->> 'organization',
       sent.event ->> 'user_id',
       (sent.event ->> 'schema_version')::integer,
       (sent.event ->> 'created_at')::timestamptz
  from sent
 order by sent.n
    on conflict (source, id) do nothing;
