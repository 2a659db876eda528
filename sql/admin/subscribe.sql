-- Create or change a subscription.
--   $1 JSON object with the parameters of outbox.subscribe
select outbox.subscribe(
           name          => wanted.name,
           topics        => wanted.topics,
           sink          => wanted.sink,
           config        => coalesce(wanted.config, '{}'),
           match         => $1::jsonb -> 'match',
           filter        => wanted.filter,
           transform     => wanted.transform,
           organization  => wanted.organization,
           ordering      => coalesce(wanted.ordering, 'none'),
           retry         => coalesce(wanted.retry, '{}'),
           keys          => wanted.keys,
           max_in_flight => wanted.max_in_flight,
           schema_version => wanted.schema_version,
           on_exhausted  => coalesce(wanted.on_exhausted, 'skip'),
           rate          => wanted.rate,
           "coalesce"    => coalesce(wanted."coalesce", 'none'),
           start         => coalesce(wanted.start, 'now'))
  from jsonb_to_record($1::jsonb) as wanted (
           name text, topics text[], sink text, config jsonb, filter text,
           transform text, organization text, ordering text, retry jsonb, keys text[],
           max_in_flight integer, schema_version integer, on_exhausted text, rate text,
           "coalesce" text, start text);
