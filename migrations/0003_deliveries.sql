-- What is owed and what became of it: the cursor, deliveries, attempts and dead letters.

-- How far routing has come. One row, updated once per routing step.
-- `step` is indexed and grows with each update, so the newest version is found at the right end of
-- its index even while an old transaction keeps every dead version alive.
create table outbox.cursor (
    step          bigint      primary key,
    settled       pg_snapshot not null,          -- every event visible in it is routed
    -- events of transactions with a higher id than `low_xid` lie above this position
    low           bigint      not null default 0,
    low_xid       xid8        not null default '0',
    -- an open window: being routed page by page, up to this snapshot
    window_end    pg_snapshot,
    window_low    bigint,                        -- `low` and `low_xid` once the window is done
    window_low_xid xid8,
    -- events of the window up to this position are routed
    page_after    bigint,
    page_until    bigint                         -- no event of the window lies above this position
) with (fillfactor = 50);
insert into outbox.cursor (step, settled) values (1, pg_current_snapshot());

-- The due time of what waits for something else than a time. Later than any other due time.
create function outbox_internal.never() returns timestamptz
language sql immutable parallel safe as $$ select timestamptz '2300-01-01Z' $$;

-- One event owed to one subscription that has a due time of its own: a retry, something for later
-- or urgent, a redrive. Deleted on success: only what is outstanding is here.
-- `due_at` is both when to try and when a lease ends; there is no "running" state to be stuck in.
create table outbox.deliveries (
    id              bigint      generated always as identity primary key,
    subscription_id bigint      not null,
    due_at          timestamptz not null,
    position        bigint      not null,
    created_at      timestamptz not null,             -- the event's: finds its partition
    owed_since      timestamptz not null default clock_timestamp(),  -- its age, for retry.max_age
    lease_token     uuid,
    attempt         integer     not null default 0,   -- counted when claimed
    unfinished      integer     not null default 0,   -- claims whose lease ended without a verdict
    -- an earlier attempt may have reached the destination
    repeated        boolean     not null default false,
    -- an operator wants it tried now, also where a breaker is open
    asked           boolean     not null default false,
    -- of an ordered subscription: it waits in the order of its key. Of the rows of a key only the
    -- first can be due; the others have the due time outbox_internal.never().
    key             text,
    replay_id       bigint                            -- null: it is no replay
) with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0
);
create index deliveries_due on outbox.deliveries (subscription_id, due_at, id);
create index deliveries_asked on outbox.deliveries (subscription_id, id) where asked;
create index deliveries_key on outbox.deliveries (subscription_id, key, position, id)
 where key is not null;

-- What a relay holds to deliver at once: a row for each routing step or claim, not for each
-- delivery. A success changes `done` and nothing else; a page with nothing left is deleted. What
-- does not succeed at once leaves it for outbox.deliveries or outbox.backlog.
--
-- A page owes pairs of a subscription and a position: exactly those that were matched. They are
-- numbered from 0 by entry, then by position; `done` holds the numbers of those that are settled.
-- `owed` is not rewritten when `done` changes, where it is large.
create table outbox.pages (
    -- grows: dead versions lie to the left
    id            bigint           generated always as identity primary key,
    lease_token   uuid             not null,
    due_at        timestamptz      not null,             -- end of the lease
    relay         text             not null,
    -- relays that died while they held these pairs
    deaths        smallint         not null default 0,
    -- of these, while they held one of them and nothing beside it
    alone         smallint         not null default 0,
    -- the events' created_at lie between: finds their partitions
    created_from  timestamptz      not null,
    created_until timestamptz      not null,
    subscriptions bigint[]         not null,             -- an entry each, ascending
    owed          int8multirange[] not null,             -- its positions
    -- its age, for retry.max_age; one for all, or one each
    owed_since    timestamptz[]    not null,
    done          int4multirange   not null default '{}'
) with (
    fillfactor = 40,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);

-- What a subscription as a whole cannot take now: it is paused, tripped, full or behind, or its
-- relay died. Ranges of positions, not a row for each: a pause of a week costs a row a routing
-- step. Claimed in parts, the oldest first, into a page.
create table outbox.backlog (
    id              bigint         generated always as identity primary key,
    subscription_id bigint         not null,
    is_suspect      boolean        not null generated always as (deaths > 0) stored,
    deaths          smallint       not null default 0,   -- as in outbox.pages
    alone           smallint       not null default 0,
    positions       int8multirange not null,
    owed_since      timestamptz    not null default clock_timestamp(),
    created_from    timestamptz    not null,
    created_until   timestamptz    not null,
    -- of an ordered subscription: claimed in the order of positions, not of ids
    is_ordered      boolean        not null default false,
    first_position  bigint         generated always as (lower(positions)) stored
) with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
create index backlog_order on outbox.backlog (subscription_id, first_position, id)
 where is_ordered;
create index backlog_subscription on outbox.backlog (subscription_id, is_suspect, id);

-- How many positions there are.
create function outbox_internal.count_positions(positions int8multirange) returns bigint
language sql immutable strict parallel safe as $$
    select coalesce(sum(upper(span) - lower(span)), 0)::bigint from unnest(positions) as span
$$;

-- The first so many of them.
create function outbox_internal.first_positions(positions int8multirange, wanted bigint)
returns int8multirange
language sql immutable strict parallel safe as $$
    select coalesce(range_agg(int8range(lower(part.span),
                                        least(upper(part.span),
                                              lower(part.span) + wanted - part.before))),
                    '{}')
      from (select span,
                   coalesce(sum(upper(span) - lower(span))
                                over (order by span
                                       rows between unbounded preceding and 1 preceding),
                            0)::bigint as before
              from unnest(positions) as span) as part
     where part.before < wanted
$$;

-- The pairs of a page that are not settled.
create function outbox_internal.left_of(page outbox.pages)
returns table (subscription_id bigint, "position" bigint, number integer)
language sql stable as $$
    select pair.subscription_id, pair.at, pair.number
      from (select entry.subscription_id, at,
                   (row_number() over (order by entry.n, at) - 1)::integer as number
              from unnest(page.subscriptions, page.owed) with ordinality
                   as entry (subscription_id, owed, n)
             cross join lateral unnest(entry.owed) as span
             cross join lateral generate_series(lower(span), upper(span) - 1) as at) as pair
     where not page.done @> pair.number
$$;

-- The first of these positions whose event has a value that cannot be read: it is too long as text,
-- or damaged. Null: all can be read. The codes are those of `sink/sqlstate.rs` and class 22.
create function outbox_internal.first_unreadable(
    positions     bigint[],
    created_from  timestamptz,
    created_until timestamptz
) returns bigint
language plpgsql stable as $$
declare
    at bigint;
begin
    foreach at in array first_unreadable.positions loop
        begin
            perform octet_length(event.payload::text), octet_length(event.headers::text),
                    octet_length(concat(event.topic, event.key, event.organization, event.source,
                                        event.user_id))
               from outbox.events as event
              where event.position = at
                and event.created_at between created_from and created_until;
        exception
            when data_exception or program_limit_exceeded or internal_error then return at;
        end;
    end loop;
    return null;
end;
$$;

-- Urgent events that were routed before their turn. Routing passes them when it comes to them.
create table outbox.routed_early (
    position   bigint      primary key,
    created_at timestamptz not null              -- the event's: finds its partition
) with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
comment on table outbox.routed_early is
    'Urgent events that were routed before their turn and that routing has not come to yet.';

-- The delivery log. `relay.attempt_log` says what is kept: all, failures, or off.
create table outbox.attempts (
    at              timestamptz not null default clock_timestamp(),
    delivery_id     bigint,                          -- null: it never had a row
    subscription_id bigint      not null,
    position        bigint      not null,
    event_id        uuid,                             -- null: the event could not be read
    attempt         integer     not null,
    duration        interval    not null,
    outcome         text        not null,
    reason          text,
    status          integer,
    answer          text,
    -- the request may have reached the destination
    ambiguous       boolean     not null default false,
    -- the lease was lost; the verdict changed nothing
    stale           boolean     not null default false,
    -- an earlier attempt may have reached the destination
    repeated        boolean     not null default false,
    relay           text        not null
) partition by range (at);
create table outbox.attempts_default partition of outbox.attempts default;
-- so that a publication for all tables forbids no delete
alter table outbox.attempts replica identity full;
alter table outbox.attempts_default replica identity full;
create index attempts_position on outbox.attempts (position);
create index attempts_at on outbox.attempts using brin (at);

-- A copy of the event that needs nothing else, why it was given up, and the last answer.
create table outbox.dead_letters (
    id              bigint      generated always as identity primary key,
    died_at         timestamptz not null default clock_timestamp(),
    subscription_id bigint      not null,
    subscription    text        not null,
    reason          text        not null,
    status          integer,
    answer          text,
    attempts        integer     not null,
    -- null: the event could not be read, so it is not redriven
    event_id        uuid,
    position        bigint      not null,
    created_at      timestamptz not null,
    topic           text        not null,
    key             text,
    payload         jsonb       not null,
    headers         jsonb       not null,
    organization    text,
    source          text,
    user_id         text,
    priority        integer     not null,
    schema_version  integer,
    replay_id       bigint                            -- null: it was no replay
);
-- redriven and discarded in the order of events, of one subscription or of all
create index dead_letters_subscription on outbox.dead_letters (subscription_id, position, id);
create index dead_letters_position on outbox.dead_letters (position, id);
-- listed from the newest
create index dead_letters_died_at on outbox.dead_letters (died_at, id);

-- What each relay reports about itself and its subscriptions every few seconds: shown by
-- outbox.subscription_status.
create table outbox.relays (
    name       text        primary key,
    version    text        not null,
    started_at timestamptz not null,
    seen_at    timestamptz not null,
    permits    integer     not null,
    leased_ahead integer   not null,  -- deliveries that it has leased and not begun
    in_flight  integer     not null,
    unsettled  integer     not null,  -- deliveries that were answered and are not recorded
    no_progress_since timestamptz,    -- it fails again and again to route or to settle
    no_progress_why   text            -- the error that it meets
) with (fillfactor = 50);
create table outbox.relay_subscriptions (
    relay           text        not null,
    subscription_id bigint      not null,
    delivered       bigint      not null,   -- attempts since the relay started
    failed          bigint      not null,
    delivered_lately bigint     not null default 0,  -- in the last 15 minutes
    -- events it was not sent because match or filter could not be evaluated
    filter_errors   bigint      not null default 0,
    last_filter_error text,
    breaker         text        not null check (breaker in ('closed', 'open', 'half_open')),
    reported_at     timestamptz not null,
    primary key (relay, subscription_id)
) with (fillfactor = 50);

-- How a SQL function takes an event: the statement that calls it, with the event as $1. One unnamed
-- parameter, or one named "event", takes all of it as jsonb; parameters named after its fields take
-- those, each in its own type.
create function outbox_internal.function_call(function text) returns text
language plpgsql stable as $$
declare
    target    pg_catalog.pg_proc;
    arguments text[] := '{}';
    n         integer;
    name      text;
    takes     text;
    schema    text;
begin
    if function !~ '^[^.(]+[.][^.(]+([(].*[)])?$' then
        raise exception using errcode = '22023',
            message = format('config.function: %L is not the name of a function with its schema',
                             function),
            hint = 'For example {"function": "shop.on_order"}; where there are several of that '
                   'name, "shop.on_order(jsonb)".';
    end if;
    select * into target from pg_catalog.pg_proc as candidate
     where candidate.oid = case when function like '%(%' then to_regprocedure(function)::oid
                                else to_regproc(function)::oid end;
    if target.oid is null then
        raise exception using errcode = '42883',
            message = format('config.function: there is no function %s, or several', function),
            hint = 'Create it first, and let the relay use it: grant usage on its schema and '
                   'execute on it to outbox_relay.';
    end if;
    select namespace.nspname into schema
      from pg_catalog.pg_namespace as namespace
     where namespace.oid = target.pronamespace;
    if schema in ('pg_catalog', 'information_schema', 'outbox', 'outbox_internal') then
        raise exception using errcode = '42501',
            message = format('config.function: %s belongs to the system', function),
            hint = 'Write a function of your own that calls it.';
    end if;
    if target.prokind <> 'f' or target.proretset or target.provariadic <> 0 then
        raise exception using errcode = '42809',
            message = format('config.function: %s is not a plain function', function),
            hint = 'No procedures, aggregates, sets and variadic parameters.';
    end if;
    if target.pronargs = 1
       and target.proargtypes[0] = 'jsonb'::regtype
       and coalesce(target.proargnames[1], '') in ('', 'event') then
        return format('select %I.%I($1)', schema, target.proname);
    end if;
    for n in 1 .. target.pronargs loop
        name := coalesce(target.proargnames[n], '');
        takes := format_type(target.proargtypes[n - 1], null);
        if name in ('payload', 'headers') then
            arguments := arguments || format('%I => ($1 -> %L)::%s', name, name, takes);
        elsif name = 'event' then
            arguments := arguments || format('%I => $1::%s', name, takes);
        elsif name in ('id', 'topic', 'key', 'organization', 'source', 'user_id', 'schema_version',
                       'created_at', 'position') then
            arguments := arguments || format('%I => ($1 ->> %L)::%s', name, name, takes);
        elsif n > target.pronargs - target.pronargdefaults then
            null;  -- it has a default
        else
            raise exception using errcode = '42809',
                message = format('config.function: %s has a parameter %L that is no field of an '
                                 'event',
                                 function, name),
                hint = 'Take one jsonb, or parameters named event, id, topic, key, payload, '
                       'headers, organization, source, user_id, schema_version, created_at, '
                       'position.';
        end if;
    end loop;
    return format('select %I.%I(%s)', schema, target.proname, array_to_string(arguments, ', '));
end;
$$;

-- Call a SQL function for each delivery and settle those that worked, all in the caller's
-- transaction. Each call has a savepoint of its own. What is settled is locked only after the last
-- call: until then a relay must be able to renew its leases. A delivery is a pair of a page
-- (`pages` and `numbers`) or a row of outbox.deliveries (`pages` null, `numbers` its id).
create function outbox_internal.call_function(
    function     text,
    pages        bigint[],
    numbers      bigint[],
    lease_tokens uuid[],
    events       text[]
)
returns table (number integer, code text, message text)
language plpgsql as $$
declare
    call    text := outbox_internal.function_call(function);
    rows    bigint[] := '{}';
    worked  integer[] := '{}';
    caller  text := current_user;
    settled bigint;
    n       integer;
    held    record;
begin
    for n in 1 .. cardinality(numbers) loop
        number := n;
        begin
            execute call using events[n]::jsonb;
            if current_user <> caller then
                raise exception using errcode = '42501',
                    message = format('the function left the role as %s', current_user);
            end if;
            if pages[n] is null then
                rows := rows || numbers[n];
            else
                worked := worked || n;
            end if;
            code := null;
            message := null;
        exception when others then
            get stacked diagnostics code = returned_sqlstate, message = message_text;
        end;
        return next;
    end loop;
    -- What the application put off to the commit runs now, while the limit for statements holds and
    -- no delivery is locked.
    set constraints all immediate;
    for held in
        select pages[at] as page,
               range_agg(int4range(numbers[at]::integer, numbers[at]::integer + 1)) as done
          from unnest(worked) as at group by pages[at] order by pages[at]
    loop
        update outbox.pages as page set done = page.done + held.done
         where page.id = held.page
           and page.lease_token = any (lease_tokens)
           and not page.done && held.done;
        if not found then
            raise exception using errcode = '40001',
                message = 'the lease of a delivery was lost while its function ran: all is undone';
        end if;
    end loop;
    delete from outbox.deliveries as delivery
     where delivery.id = any (rows) and delivery.lease_token = any (lease_tokens);
    get diagnostics settled = row_count;
    if settled <> cardinality(rows) then
        raise exception using errcode = '40001',
            message = 'the lease of a delivery was lost while its function ran: all is undone';
    end if;
end;
$$;
