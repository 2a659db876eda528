-- Make the subscription of a handler of this program, or update its topics. What else an operator
-- set is kept.
--   $1 name   $2 topics
select outbox_internal.declare_handler($1::text, $2::text[]);
