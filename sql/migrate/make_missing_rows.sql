-- Make the rows without which no relay works, where they are missing.
--
-- If there are events, nobody knows which of them were routed: the cursor begins before all of
-- them, so that none is lost and what is still in the log may be sent again. And nobody knows whose
-- they are: without its identity the outbox must be adopted.
-- The numbers are higher than any that relays have seen, which would be a database that was set
-- back.
with moment as (
    select (extract(epoch from clock_timestamp()) * 1000000)::bigint as number,
           exists (select from outbox.events) as has_events
),
cursor as (
    insert into outbox.cursor (step, settled)
    select moment.number,
           case when moment.has_events then '1:1:'::pg_snapshot else pg_current_snapshot() end
      from moment
     where not exists (select from outbox.cursor)
),
generation as (
    insert into outbox.generation (value)
    select moment.number
      from moment
     where not exists (select from outbox.generation)
    on conflict do nothing
)
insert into outbox.identity (set_back)
select case when moment.has_events then 'the row of outbox.identity was missing' end
  from moment
 where not exists (select from outbox.identity)
on conflict do nothing
