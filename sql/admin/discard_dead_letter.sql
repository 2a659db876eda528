-- Delete one dead letter permanently. Returns whether it was there. $1 id
select outbox.discard(id => $1::bigint) = 1;
