-- Destinations asked for pauses: no relay sends to these subscriptions until a pause ends. A pause
-- is never shortened, and a change of less than a second is not written. Nothing is written about a
-- subscription that has another destination by now.
--   $1 subscriptions; $2 to $4 are in their order
--   $2 lengths in seconds   $3 sinks   $4 configs, as text
update outbox.subscriptions as subscription
   set paused_until = now() + make_interval(
           secs => ($2::double precision[])[array_position($1::bigint[], subscription.id)])
 where subscription.id = any (array(
           select asked.id
             from outbox.subscriptions as asked
            where asked.id = any ($1::bigint[])
              and asked.sink = ($3::text[])[array_position($1::bigint[], asked.id)]
              and asked.config = ($4::text[])[array_position($1::bigint[], asked.id)]::jsonb
              and (asked.paused_until is null
                   or asked.paused_until
                      < now()
                        + make_interval(
                              secs => ($2::double precision[])[array_position($1::bigint[],
                                                                              asked.id)])
                        - interval '1 second')
            order by asked.id
              for update skip locked))
returning subscription.id
