-- Where an event is, without reading it. An id of version 7 begins with its time, and
-- outbox.event_ids has that of an id that was given; only another one is looked for everywhere.
--   $1 id
with id as (
    select given.at,
           coalesce(given.at, to_timestamp(given.milliseconds / 1000.0)) as near,
           given.at is not null or given.version = '7' as is_dated
      from (select (select known.created_at
                      from outbox.event_ids as known
                     where known.id = $1::uuid) as at,
                   ('x' || left(replace($1::uuid::text, '-', ''), 12))::bit(48)::bigint
                       as milliseconds,
                   substring($1::uuid::text from 15 for 1) as version) as given
)
select found.position, found.created_at
  from (select event.position, event.created_at
          from id
          join outbox.events as event
            on event.created_at between id.near - interval '1 hour' and id.near + interval '1 day'
         where event.id = $1::uuid
        union all
        select event.position, event.created_at
          from outbox.events as event
         where event.id = $1::uuid
           and not (select id.is_dated from id)) as found
 limit 1;
