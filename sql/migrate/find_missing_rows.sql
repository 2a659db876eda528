-- Find the rows without which no relay works. A dump of the schema alone lacks them, and so does a
-- database in which somebody has truncated them.
select missing.name
  from (select 1 as rank, 'the row of outbox.cursor' as name
         where not exists (select from outbox.cursor)
         union all
        select 2, 'the row of outbox.generation'
         where not exists (select from outbox.generation)
         union all
        select 3, 'the row of outbox.identity'
         where not exists (select from outbox.identity)) as missing
 order by missing.rank
