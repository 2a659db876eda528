-- Retry one dead letter, with the attempt count reset. Returns whether it was there and could be.
-- $1 id
select outbox.redrive(id => $1::bigint) = 1;
