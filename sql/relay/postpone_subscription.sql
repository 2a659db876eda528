-- The destination asked for a pause: no relay sends until then. A pause only grows.
--   $1 subscription   $2 length in seconds
update outbox.subscriptions as subscription
   set paused_until = now() + make_interval(secs => $2::double precision)
 where subscription.id = any (array(
           select asked.id
             from outbox.subscriptions as asked
            where asked.id = $1::bigint
              and (asked.paused_until is null or asked.paused_until < now() + make_interval(secs => $2::double precision) - interval '1 second')
              for update skip locked))
returning subscription.name
