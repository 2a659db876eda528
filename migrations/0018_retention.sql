-- What leaves by its age: partitions of the log and of the delivery log, ids given by publishers,
-- and dead letters if that is wanted. Relays call these functions every minute, a step in each
-- call. A lock that publishers could wait behind is waited for no longer than 100 ms.

-- What the last look found.
create table outbox.retention_periods (
    log       text        primary key,
    period    interval    not null,                -- as the relay said that looked last
    laggard   text,
    looked_at timestamptz not null,
    -- since when looks follow each other: after a jump of the clock, or a long time without relays,
    -- nothing is removed at once
    steady_since timestamptz not null,
    problem   text                                 -- why no partition could be made
);
comment on table outbox.retention_periods is
    'For how long relays keep the events, attempts, event_ids and dead_letters, as said by the '
    'relay that looked last.';
create table outbox.retention_kept (
    partition text        primary key,
    log       text        not null,
    since     timestamptz not null,
    kept_by   text        not null
);
comment on table outbox.retention_kept is
    'Partitions that are due to be dropped and stay, with the reason. See outbox.retention_status.';
-- Transaction ids by time: a token of a live client that is younger than the period must not become
-- too old because of an event that was published later with an old created_at.
create table outbox.retention_marks (
    at  timestamptz primary key,
    xid xid8        not null
);
comment on table outbox.retention_marks is
    'Transaction ids by time, a few for each partition of outbox.events.';

-- Ids and dead letters leave in the order of their times, in small parts: their entries in the
-- indexes must not stay until a fifth of the table has gone.
alter table outbox.event_ids set (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 5000
);
alter table outbox.dead_letters set (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 5000
);

-- Old ids, which relays delete. It grows at its right end.
create index event_ids_created_at on outbox.event_ids (created_at);

create function outbox_internal.check_laggard(laggard text) returns void
language plpgsql immutable as $$
begin
    if laggard is null or laggard not in ('keep', 'dead-letter') then
        raise exception using errcode = '22023',
            message = format('laggard: %L is neither keep nor dead-letter', laggard);
    end if;
end;
$$;

create function outbox_internal.note_period(
    log     text,
    period  interval,
    laggard text,
    at      timestamptz,
    problem text
) returns void
language sql as $$
    insert into outbox.retention_periods as known (
        log, period, laggard, looked_at, steady_since, problem)
    values (note_period.log, note_period.period, note_period.laggard, note_period.at,
            note_period.at, note_period.problem)
    on conflict on constraint retention_periods_pkey do update
       set period = excluded.period,
           laggard = coalesce(excluded.laggard, known.laggard),
           looked_at = excluded.looked_at,
           steady_since = case when excluded.looked_at between known.looked_at - interval '1 minute'
                                    and known.looked_at
                                        + greatest(excluded.period / 4, interval '1 hour')
                               then least(known.steady_since, excluded.looked_at)
                               else excluded.looked_at end,
           problem = excluded.problem
$$;

-- Whether looks have followed each other for ten minutes. A clock that was set months ahead by
-- mistake, and set back soon, then removes nothing.
create function outbox_internal.is_steady(log text, at timestamptz) returns boolean
language sql stable as $$
    select exists (select from outbox.retention_periods as known
                    where known.log = is_steady.log
                      and known.steady_since <= is_steady.at - interval '10 minutes'
                      and is_steady.at between known.looked_at - interval '1 minute'
                                           and known.looked_at
                                               + greatest(known.period / 4, interval '1 hour'))
$$;

-- Why a partition whose time has passed must stay; null: nothing is owed of it. Read in one
-- statement: what is owed moves between these tables, and is always in one of them.
--   laggard  with 'dead-letter' dead letters keep nothing, for they are copies
--   mark     transaction id at the beginning of the period; null: not known
create function outbox_internal.kept_by(
    part    regclass,
    low     timestamptz,
    high    timestamptz,
    laggard text,
    mark    xid8
) returns text
language plpgsql stable
set enable_seqscan = on set plan_cache_mode = force_custom_plan as $$
declare
    first      bigint;
    last       bigint;
    newest     xid8;
    reason     text;
begin
    execute format('select (select min(event.position) from %1$s as event), '
                   '(select max(event.position) from %1$s as event), '
                   '(select event.xid from %1$s as event order by event.xid desc limit 1)', part)
       into first, last, newest;
    if first is null then
        return null;
    end if;
    execute format($f$
        with routed as (
            select cursor.settled from outbox.cursor as cursor order by cursor.step desc limit 1
        )
        select case
            when exists (
                    select from %1$s as event
                     where event.xid >= (select pg_snapshot_xmin(routed.settled) from routed)
                       and event.created_at < $2
                       and not pg_visible_in_snapshot(event.xid,
                                                      (select routed.settled from routed)))
              or exists (select from outbox.routed_early as early
                          where early.created_at >= $1 and early.created_at < $2)
            then 'events that are not routed'
            else coalesce(
                (select 'the start of ' || subscription.name
                   from outbox.starts as start
                   join outbox.subscriptions as subscription
                     on subscription.id = start.subscription_id
                  where start.settled is null
                     or (start.position < $4
                         and coalesce(start.until, $4) >= $3
                         and coalesce(start.since, '-infinity') < $2)
                  order by subscription.name limit 1),
                (select 'replay ' || replay.id
                   from outbox.replays as replay
                  where replay.state in ('running', 'paused')
                    and replay.position < $4 and replay.until_position >= $3
                    and replay.since < $2 and coalesce(replay.until, 'infinity') > $1
                  order by replay.id limit 1),
                (select 'dead letters of ' || letter.subscription
                   from outbox.dead_letters as letter
                  where letter.position between $3 and $4
                    and letter.created_at >= $1 and letter.created_at < $2
                    and $5 is distinct from 'dead-letter'
                    and exists (select from %1$s as event where event.position = letter.position)
                  limit 1),
                (select 'deliveries of relay ' || page.relay
                   from outbox.pages as page
                  where page.created_from < $2 and page.created_until >= $1
                  limit 1),
                (select 'the backlog of ' || coalesce(
                            (select one.name from outbox.subscriptions as one
                              where one.id = waiting.subscription_id), 'a subscription')
                   from outbox.backlog as waiting
                  where waiting.created_from < $2 and waiting.created_until >= $1
                    and waiting.positions && int8range($3, $4, '[]')
                    and exists (
                            select
                              from unnest(waiting.positions
                                          * int8multirange(int8range($3, $4, '[]'))) as span
                             cross join lateral (
                                   select from %1$s as event
                                    where event.position >= lower(span)
                                      and event.position < upper(span)
                                      and event.created_at >= $1 and event.created_at < $2
                                    limit 1) as found)
                  limit 1),
                (select 'deliveries of ' || coalesce(
                            (select one.name from outbox.subscriptions as one
                              where one.id = delivery.subscription_id), 'a subscription')
                   from outbox.deliveries as delivery
                  where delivery.created_at >= $1 and delivery.created_at < $2
                    -- the times of a default partition may be those of another one, too
                    and exists (select from %1$s as event
                                 where event.position = delivery.position)
                  limit 1))
        end$f$, part)
       into reason
      using low, high, first, last, laggard;
    return coalesce(reason, case when newest >= mark
                                 then 'live clients: it has events that were published later' end);
end;
$$;

-- Copies what is owed of a partition into dead letters, at most 500 in a call, for laggard =
-- 'dead-letter': what has been owed since before `owed_before`, so that what was redriven or sent
-- again is tried for a period. What is leased is left to its relay. Returns how many.
create function outbox_internal.copy_owed(
    part        regclass,
    low         timestamptz,
    high        timestamptz,
    owed_before timestamptz
) returns bigint
language plpgsql
set enable_seqscan = on set plan_cache_mode = force_custom_plan as $$
declare
    subscriptions bigint[];
    those         bigint[];
    attempts      integer[];
    replays       bigint[];
    waiting_row   outbox.backlog;
    whole         int8multirange;
    ids           bigint[];
    keys          text[];
    buried        bigint;
begin
    execute format($f$
        with dying as (
            delete from outbox.deliveries as delivery
             where delivery.id = any (array(
                       select one.id from outbox.deliveries as one
                        where one.created_at >= $1 and one.created_at < $2
                          and one.owed_since < $3
                          and (one.lease_token is null or one.due_at < clock_timestamp())
                          and exists (select from %s as event
                                       where event.position = one.position)
                        order by one.id
                        limit 500
                          for update skip locked))
            returning delivery.subscription_id, delivery.position, delivery.attempt,
                      delivery.replay_id
        )
        select array_agg(dying.subscription_id), array_agg(dying.position),
               array_agg(dying.attempt), array_agg(dying.replay_id)
          from dying$f$, part)
       into subscriptions, those, attempts, replays
      using low, high, owed_before;
    if those is null then
        execute format('select int8multirange(int8range(min(event.position), max(event.position), '
                       '%L)) from %s as event', '[]', part)
           into whole;
        for waiting_row in
            select waiting.* from outbox.backlog as waiting
             where waiting.created_from < high and waiting.created_until >= low
               and waiting.owed_since < owed_before
               and waiting.positions && whole
             order by waiting.id
               for update skip locked
        loop
            execute format('select array_agg(event.position) from (select one.position '
                           'from unnest($1) as span '
                           'cross join lateral (select event.position, event.created_at '
                           'from %s as event where event.position >= lower(span) '
                           'and event.position < upper(span) '
                           'and event.created_at >= $2 and event.created_at < $3 '
                           'order by event.position limit 500) as one '
                           'order by one.position limit 500) as event', part)
               into those
              using waiting_row.positions * whole, low, high;
            continue when those is null;
            update outbox.backlog as waiting
               set positions = waiting.positions
                               - (select range_agg(int8range(at, at, '[]'))
                                    from unnest(those) as at)
             where waiting.id = waiting_row.id;
            delete from outbox.backlog as waiting
             where waiting.id = waiting_row.id and isempty(waiting.positions);
            subscriptions := array_fill(waiting_row.subscription_id, array[cardinality(those)]);
            attempts := array_fill(0, array[cardinality(those)]);
            replays := array_fill(null::bigint, array[cardinality(those)]);
            exit;
        end loop;
    end if;
    if those is null then
        return 0;
    end if;
    execute format($f$
        with buried as (
            insert into outbox.dead_letters (
                subscription_id, subscription, reason, attempts, event_id, position, created_at,
                topic, key, payload, headers, organization, source, user_id, priority,
                schema_version, replay_id)
            select owed.subscription_id, subscription.name, 'retention', owed.attempt, event.id,
                   event.position, event.created_at, event.topic, event.key, event.payload,
                   event.headers, event.organization, event.source, event.user_id, event.priority,
                   event.schema_version, owed.replay_id
              from unnest($1, $2, $3, $4)
                   as owed (subscription_id, "position", attempt, replay_id)
              join outbox.subscriptions as subscription on subscription.id = owed.subscription_id
              join %s as event on event.position = owed.position
             order by event.position
            returning id, subscription_id, key
        ),
        ordered as (
            select buried.*, subscription.on_exhausted
              from buried
              join outbox.subscriptions as subscription
                on subscription.id = buried.subscription_id and subscription.ordering = 'key'
             where buried.key is not null
        ),
        parked as (
            insert into outbox.parked_keys (subscription_id, key, dead_letter_id)
            select ordered.subscription_id, ordered.key, ordered.id
              from ordered
             where ordered.on_exhausted = 'park'
             order by ordered.id
            on conflict do nothing
        )
        select (select array_agg(ordered.subscription_id) from ordered),
               (select array_agg(ordered.key) from ordered),
               (select count(*) from buried)$f$, part)
       into ids, keys, buried
      using subscriptions, those, attempts, replays;
    -- What a deleted subscription was owed is owed no more. Nothing else may be lost.
    if buried < (select count(*)
                   from unnest(subscriptions) as owed (id)
                   join outbox.subscriptions as subscription on subscription.id = owed.id) then
        raise exception 'of % deliveries only % became dead letters', cardinality(those), buried;
    end if;
    perform outbox_internal.promote_keys(ids, keys);
    return cardinality(those);
end;
$$;

-- Redrives and replays call this before they look at the log, and hold the lock until they commit.
create function outbox_internal.ask_of_log() returns void
language sql as $$
    select pg_advisory_xact_lock_shared(7411006)
$$;

-- The highest ids of what may ask for old events. Everything that asked before this call has
-- committed, and what asks later gets higher ids.
create function outbox_internal.last_asked(
    out delivery bigint, out waiting bigint, out page bigint, out replay bigint,
    out subscription bigint
)
language plpgsql set lock_timeout = '100ms' as $$
begin
    perform pg_advisory_xact_lock(7411006);
    select coalesce(max(one.id), 0) into delivery from outbox.deliveries as one;
    select coalesce(max(one.id), 0) into waiting from outbox.backlog as one;
    select coalesce(max(one.id), 0) into page from outbox.pages as one;
    select coalesce(max(one.id), 0) into replay from outbox.replays as one;
    select coalesce(max(one.id), 0) into subscription from outbox.subscriptions as one;
    raise sqlstate 'OB001';  -- gives the lock back
exception when sqlstate 'OB001' then
    null;
end;
$$;

-- Whether something has asked for events of these times since then. Only by indexes: everybody may
-- be waiting.
create function outbox_internal.was_asked_since(
    delivery bigint, waiting bigint, page bigint, replay bigint, subscription bigint,
    low timestamptz, high timestamptz
) returns boolean
language plpgsql stable
set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_custom_plan as $$
begin
    return exists (select from outbox.deliveries as one
                    where one.id > was_asked_since.delivery
                      and one.created_at >= low and one.created_at < high)
        or exists (select from outbox.backlog as one
                    where one.id > was_asked_since.waiting
                      and one.created_from < high and one.created_until >= low)
        or exists (select from outbox.pages as one
                    where one.id > was_asked_since.page
                      and one.created_from < high and one.created_until >= low)
        or exists (select from outbox.starts as one where one.settled is null)
        or exists (select from outbox.replays as one where one.id > was_asked_since.replay)
        or exists (select from outbox.subscriptions as one
                    where one.id > was_asked_since.subscription);
end;
$$;

-- Drops one partition whose time has passed, if nothing is owed of it. Returns why it stays; null:
-- it was dropped. `emptied`: somebody uses the log all the time, so that its lock is not to be had,
-- or `may_lock` says that this is known; then the partition is emptied at once, and dropped by a
-- later call.
create function outbox_internal.drop_if_settled(
    log      text,
    parent   regclass,
    rest     regclass,
    part     regclass,
    low      timestamptz,
    high     timestamptz,
    laggard  text,
    mark     xid8,
    may_lock boolean,
    out reason  text,
    out emptied boolean
)
language plpgsql
set lock_timeout = '100ms' as $$
declare
    asked   record;
    highest xid8;
    newest  timestamptz;
    last    bigint;
begin
    -- Nothing is written to it from here on, so what is checked stays true. Its time is long past:
    -- no publisher waits for this.
    execute format('lock table only %s in share mode', part);
    if log = 'events' then
        select * into asked from outbox_internal.last_asked();
        reason := outbox_internal.kept_by(part, low, high, laggard, mark);
        if reason is not null then
            return;
        end if;
        execute format('select (select one.xid from %1$s as one order by one.xid desc limit 1), '
                       '(select max(one.created_at) from %1$s as one), '
                       '(select max(one.position) from %1$s as one)', part)
           into highest, newest, last;
    end if;
    perform set_config('synchronous_commit', 'local', true);
    if log = 'events' then
        perform outbox_internal.forget_events(highest, newest, last);
    end if;
    emptied := not may_lock;
    if may_lock then
        begin
            execute format('lock table only %s in access exclusive mode', parent);
            -- dropping a partition takes it, too, and everybody waits already
            if rest is not null then
                execute format('lock table only %s in access exclusive mode nowait', rest);
            end if;
        exception when lock_not_available or deadlock_detected then
            emptied := true;
        end;
    end if;
    if emptied then
        -- who asks for its events reads it first: such a transaction has ended, or waits
        execute format('lock table only %s in access exclusive mode', part);
    end if;
    if log = 'events' then
        -- It needed to read the log, which nobody does now.
        if outbox_internal.was_asked_since(asked.delivery, asked.waiting, asked.page, asked.replay,
                                           asked.subscription, low, high) then
            raise exception using errcode = '55P03', message = 'it was asked for meanwhile';
        end if;
    end if;
    if emptied then
        if pg_relation_size(part) > 0 then
            execute format('truncate table only %s', part);
        end if;
        reason := 'a lock: its events have left, and it waits until nobody uses the log for a '
                  'moment';
    else
        execute format('drop table %s', part);
    end if;
end;
$$;

-- Drops the oldest partition whose time has passed and that nothing is owed of. With laggard =
-- 'dead-letter' a call may instead copy a part of what is owed. Rows of the default partition that
-- are too old are deleted, at most 5,000 in a call. `done` is null when nothing is left to do. What
-- fails for one partition is recorded as what keeps it, and the others go on.
create function outbox_internal.drop_partition_at(
    log     text,
    period  interval,
    laggard text,
    at      timestamptz,
    out done text,
    out partition text,
    out rows bigint
)
language plpgsql
set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
set datestyle = 'ISO' set timezone = 'UTC'
set enable_seqscan = on set enable_bitmapscan = on as $$
declare
    key    name := outbox_internal.log_column(log, period);
    parent regclass := to_regclass(format('outbox.%I', log));
    rest   record;
    mark   xid8;
    part   record;
    reason text;
    emptied boolean;
    may_lock boolean := true;
    was_empty boolean;
    locked name;  -- the first partition of which a lock was not to be had
    left_empty name;  -- the first that was emptied
begin
    perform outbox_internal.check_laggard(laggard);
    if not pg_try_advisory_xact_lock(7411005) then
        done := 'busy';
        return;
    end if;
    if log = 'events' then
        if not exists (select from outbox.retention_marks as known
                        where known.at > drop_partition_at.at
                                         - outbox_internal.partition_width(period) / 4) then
            insert into outbox.retention_marks
            values (drop_partition_at.at, pg_snapshot_xmax(pg_current_snapshot()))
            on conflict do nothing;
        end if;
        select known.xid into mark from outbox.retention_marks as known
         where known.at <= drop_partition_at.at - period
         order by known.at desc limit 1;
        delete from outbox.retention_marks as known
         where known.at < drop_partition_at.at - period
                          - outbox_internal.partition_width(period)
            or known.at > drop_partition_at.at;  -- the clock was ahead
    end if;
    select class.oid::regclass as relation, class.relname into rest
      from pg_partitioned_table as tree
      join pg_class as class on class.oid = tree.partdefid
     where tree.partrelid = parent;
    delete from outbox.retention_kept as kept
     where kept.log = drop_partition_at.log
       and kept.partition is distinct from rest.relname
       and not exists (select from outbox_internal.log_partitions(drop_partition_at.log) as one
                         join pg_class as class on class.oid = one.relation
                        where class.relname = kept.partition
                          and one.high <= drop_partition_at.at - period);

    for part in
        select one.relation, one.low, one.high, class.relname
          from outbox_internal.log_partitions(log) as one
          join pg_class as class on class.oid = one.relation
         where one.is_plain and one.high <= drop_partition_at.at - period
         order by one.high
    loop
        partition := part.relname;
        begin
            was_empty := pg_relation_size(part.relation) = 0;
            select dropped.reason, dropped.emptied into reason, emptied
              from outbox_internal.drop_if_settled(log, parent, rest.relation, part.relation,
                                                   part.low, part.high, laggard, mark, may_lock)
                   as dropped;
            if reason is null then
                delete from outbox.retention_kept as kept where kept.partition = part.relname;
                done := 'dropped';
                return;
            end if;
            if emptied then
                may_lock := false;
                locked := coalesce(locked, part.relname);
                left_empty := coalesce(left_empty,
                                       case when not was_empty then part.relname end);
            elsif laggard = 'dead-letter' then
                rows := outbox_internal.copy_owed(part.relation, part.low, part.high, at - period);
                done := case when rows > 0 then 'copied' end;
            end if;
        exception
            when lock_not_available or deadlock_detected then
                reason := 'a lock: ' || sqlerrm;
                locked := coalesce(locked, part.relname);
            when others then
                reason := 'an error: ' || sqlerrm;
        end;
        perform outbox_internal.note_kept(log, part.relname, at, reason);
        if done is not null then
            return;
        end if;
    end loop;
    if left_empty is not null then
        done := 'emptied';
        partition := left_empty;
        return;
    end if;
    partition := null;
    if rest.relation is null then
        return;
    end if;

    -- What lies in the default partition: of a time for which no relay had made one, or put back.
    partition := rest.relname;
    begin
        select cleaned.done, cleaned.reason, cleaned.rows into done, reason, rows
          from outbox_internal.clean_default(log, rest.relation, key, at - period, laggard, mark)
               as cleaned;
    exception
        when lock_not_available or deadlock_detected then
            reason := 'a lock: ' || sqlerrm;
            locked := coalesce(locked, rest.relname);
        when others then
            reason := 'an error: ' || sqlerrm;
    end;
    if reason is null then
        delete from outbox.retention_kept as kept where kept.partition = rest.relname;
    else
        perform outbox_internal.note_kept(log, rest.relname, at, reason);
    end if;
    if done is null and locked is not null then
        done := 'locked';
        partition := locked;
    end if;
end;
$$;

create function outbox_internal.note_kept(
    log text, partition name, at timestamptz, reason text
) returns void
language sql as $$
    insert into outbox.retention_kept as kept (partition, log, since, kept_by)
    values (note_kept.partition, note_kept.log, note_kept.at, note_kept.reason)
    on conflict on constraint retention_kept_pkey do update set kept_by = excluded.kept_by
$$;

-- Deletes rows of a default partition from before `until`, at most 5,000, once nothing is owed of
-- them. `done`: what was done; `reason`: why they stay.
create function outbox_internal.clean_default(
    log     text,
    rest    regclass,
    key     name,
    until   timestamptz,
    laggard text,
    mark    xid8,
    out done   text,
    out reason text,
    out rows   bigint
)
language plpgsql
set lock_timeout = '100ms' as $$
declare
    asked record;
    old   tid[];
begin
    -- First: what is chosen is seen by the check that follows.
    execute format('select array_agg(one.ctid) from (select event.ctid from %2$s as event '
                   'where event.%1$I < $1 %3$s limit 5000 for update skip locked) as one', key,
                   rest,
                   case when log = 'events' then 'and ($2 is null or event.xid < $2)' else '' end)
       into old
      using until, mark;
    if old is null then
        return;
    end if;
    if log = 'events' then
        select * into asked from outbox_internal.last_asked();
        reason := outbox_internal.kept_by(rest, '-infinity', until, laggard, null);
        if reason is not null then
            if laggard = 'dead-letter' then
                rows := outbox_internal.copy_owed(rest, '-infinity', until, until);
                done := case when rows > 0 then 'copied' end;
            end if;
            return;
        end if;
        -- A redrive puts back what it does not find: until the rows are gone it waits.
        perform pg_advisory_xact_lock(7411006);
        if outbox_internal.was_asked_since(asked.delivery, asked.waiting, asked.page, asked.replay,
                                           asked.subscription, '-infinity', until) then
            raise exception using errcode = '55P03', message = 'it was asked for meanwhile';
        end if;
    end if;
    execute format('delete from %s as one where one.ctid = any ($1)', rest) using old;
    get diagnostics rows = row_count;
    done := case when rows > 0 then 'deleted' end;
end;
$$;

-- Deletes ids given by publishers, or dead letters, that are older than a period: at most 5,000 in
-- a call. Returns how many, and the newest time among them, below which the next call need not
-- look.
create function outbox_internal.delete_old_at(
    what   text,
    period interval,
    after  timestamptz,
    at     timestamptz,
    out rows bigint,
    out newest timestamptz
)
language plpgsql
set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_custom_plan as $$
declare
    gone bigint[];
begin
    perform outbox_internal.check_old(what, period);
    if what = 'event_ids' then
        with old as (
            delete from outbox.event_ids as one
             where one.id = any (array(
                       select given.id from outbox.event_ids as given
                        where given.created_at >= coalesce(after, '-infinity')
                          and given.created_at < at - period
                        order by given.created_at
                        limit 5000
                          for update skip locked))
            returning one.created_at
        )
        select count(*), max(old.created_at) into rows, newest from old;
    else
        with old as (
            delete from outbox.dead_letters as one
             where one.id = any (array(
                       select letter.id from outbox.dead_letters as letter
                        where letter.died_at >= coalesce(after, '-infinity')
                          and letter.died_at < at - period
                        order by letter.died_at, letter.id
                        limit 5000
                          for update skip locked))
            returning one.died_at, one.id
        )
        select count(*), max(old.died_at), array_agg(old.id) into rows, newest, gone from old;
        perform outbox_internal.unpark(gone);
        if rows > 0 then
            perform pg_notify('outbox_doorbell', 'due');  -- keys that were parked go on
        end if;
    end if;
end;
$$;

create function outbox_internal.check_old(what text, period interval) returns void
language plpgsql immutable as $$
begin
    if what is null or what not in ('event_ids', 'dead_letters') then
        raise exception using errcode = '22023',
            message = format('what: %L is neither event_ids nor dead_letters', what);
    end if;
    perform outbox_internal.check_period(period);
end;
$$;

-- For relays. They run as the owner of the outbox, and the time is now.
create function outbox_internal.make_partition(
    log text, period interval, out done text, out partition text, out problem text
)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    seen outbox.retention_periods;
begin
    select made.* into done, partition, problem
      from outbox_internal.make_partition_at(log, period, now()) as made;
    select known.* into seen from outbox.retention_periods as known
     where known.log = make_partition.log;
    if done is distinct from 'busy'
       and (seen.log is null or seen.period <> make_partition.period
            or seen.problem is distinct from make_partition.problem
            or not seen.looked_at between now() - interval '50 seconds' and now()) then
        perform outbox_internal.note_period(log, period, null, now(), problem);
    end if;
end;
$$;
create function outbox_internal.drop_partition(
    log text, period interval, laggard text, out done text, out partition text, out rows bigint
)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform outbox_internal.log_column(log, period);
    perform outbox_internal.check_laggard(laggard);
    if outbox_internal.is_steady(log, now()) then
        select dropped.* into done, partition, rows
          from outbox_internal.drop_partition_at(log, period, laggard, now()) as dropped;
    end if;
end;
$$;
create function outbox_internal.delete_old(
    what text, period interval, after timestamptz, out rows bigint, out newest timestamptz
)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform outbox_internal.check_old(what, period);
    rows := 0;
    if outbox_internal.is_steady(what, now()) then
        select deleted.* into rows, newest
          from outbox_internal.delete_old_at(what, period, after, now()) as deleted;
    end if;
    -- Last: other relays wait for this row.
    perform outbox_internal.note_period(what, period, null, now(), null);
end;
$$;
-- Nothing of this leaves by its age any more.
create function outbox_internal.keep_for_ever(what text) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    delete from outbox.retention_periods as known where known.log = keep_for_ever.what;
    delete from outbox.retention_kept as kept where kept.log = keep_for_ever.what;
$$;
comment on function outbox_internal.keep_for_ever is
    'Forget that relays removed old events, attempts, event_ids or dead_letters: their setting is '
    'off. Called by relays.';
comment on function outbox_internal.make_partition is
    'Make the next partition of a log, or do the next step towards it. Called by relays.';
comment on function outbox_internal.drop_partition is
    'Drop the oldest partition that is older than the period and that nothing is owed of. Called '
    'by relays.';
comment on function outbox_internal.delete_old is
    'Delete event_ids or dead letters that are older than the period, 5,000 at most. Called by '
    'relays.';

create view outbox.retention_status as
    select known.log, class.relname::text as partition,
           nullif(part.low, '-infinity') as "from", nullif(part.high, 'infinity') as "to",
           pg_total_relation_size(part.relation) as bytes,
           part.high + period.period as due,
           kept.since as kept_since, kept.kept_by
      from (values ('events'), ('attempts')) as known (log)
     cross join lateral outbox_internal.log_partitions(known.log) as part
      join pg_class as class on class.oid = part.relation
      left join outbox.retention_periods as period on period.log = known.log
      left join outbox.retention_kept as kept on kept.partition = class.relname
     union all
    select known.log, class.relname, null, null, pg_total_relation_size(class.oid), null,
           kept.since, kept.kept_by
      from (values ('events'), ('attempts')) as known (log)
      join pg_partitioned_table as tree
        on tree.partrelid = to_regclass('outbox.' || known.log)
      join pg_class as class on class.oid = tree.partdefid
      left join outbox.retention_kept as kept on kept.partition = class.relname
     order by 1, 4;
comment on view outbox.retention_status is
    'One row for each partition of outbox.events and outbox.attempts: the time that it covers, its '
    'size, when it is due to be dropped, and what keeps it although it is due.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
