-- Partitions of the log and of the delivery log by time: how they are made, a step in each call. A
-- lock that publishers could wait behind is waited for no longer than 100 ms.

-- The time that a partition covers: a tenth of the period, from an hour to 31 days.
create function outbox_internal.partition_width(period interval) returns interval
language sql immutable strict parallel safe as $$
    select make_interval(secs => least(greatest(floor(extract(epoch from period) / 10), 3600),
                                       31 * 86400))
$$;

-- The first border of partitions after this time. Borders are multiples of the width.
create function outbox_internal.border_after(at timestamptz, width interval) returns timestamptz
language sql immutable strict parallel safe as $$
    select to_timestamp((floor(extract(epoch from at) / extract(epoch from width)) + 1)
                        * extract(epoch from width))
$$;

-- The partitions of a log but for the default one, from the oldest. `is_plain` is false for one
-- that is partitioned itself, or a foreign table: these are never dropped.
create function outbox_internal.log_partitions(log text)
returns table (relation regclass, low timestamptz, high timestamptz, is_plain boolean)
language sql stable
set search_path = pg_catalog, pg_temp set datestyle = 'ISO' set timezone = 'UTC' as $$
    select part.relation,
           case part.bounds[1] when 'MINVALUE' then '-infinity'
                else trim('''' from part.bounds[1])::timestamptz end,
           case part.bounds[2] when 'MAXVALUE' then 'infinity'
                else trim('''' from part.bounds[2])::timestamptz end,
           part.is_plain
      from (select class.oid::regclass as relation, class.relkind = 'r' as is_plain,
                   regexp_match(pg_get_expr(class.relpartbound, class.oid),
                                '^FOR VALUES FROM [(](.*)[)] TO [(](.*)[)]$') as bounds
              from pg_inherits as child
              join pg_class as class on class.oid = child.inhrelid
             where child.inhparent = to_regclass(format('outbox.%I', log_partitions.log))) as part
     where part.bounds is not null
     order by 2
$$;

-- The column that a log is partitioned by; refuses other names and periods.
create function outbox_internal.log_column(log text, period interval) returns name
language plpgsql immutable as $$
begin
    if log is null or log not in ('events', 'attempts') then
        raise exception using errcode = '22023',
            message = format('log: %L is neither events nor attempts', log);
    end if;
    perform outbox_internal.check_period(period);
    return case log when 'events' then 'created_at' else 'at' end;
end;
$$;

create function outbox_internal.check_period(period interval) returns void
language plpgsql immutable as $$
begin
    if period is null or period < interval '1 hour' or period > interval '100 years' then
        raise exception using errcode = '22023',
            message = format('period: %s is not between an hour and 100 years', period);
    end if;
end;
$$;

-- While a default partition is fenced no row of it may have this time or a later one. The fence is
-- a check, so that a partition can be attached without a scan under a lock. A publisher whose time
-- is behind the fence, because the relay that made the fence has gone and none came, does not fail:
-- the time of its row is set before the fence.
create function outbox_internal.stay_before_fence() returns trigger
language plpgsql as $$
begin
    if tg_argv[0] = 'at' then
        new.at := least(new.at, tg_argv[1]::timestamptz - interval '1 microsecond');
    else
        new.created_at := least(new.created_at, tg_argv[1]::timestamptz - interval '1 microsecond');
    end if;
    return new;
end;
$$;

create function outbox_internal.fence(rest regclass, key name, fence timestamptz) returns void
language plpgsql as $$
begin
    -- The trigger first: no insert can come in between, for both need the lock of the table.
    execute format('lock table only %s in access exclusive mode', rest);
    execute format('create trigger retention_fence before insert on %s for each row '
                   'execute function outbox_internal.stay_before_fence(%L, %L)', rest, key, fence);
    execute format('alter table %s add constraint retention_fence check (%I < %L) not valid',
                   rest, key, fence);
    execute format('comment on constraint retention_fence on %s is %L', rest, fence);
end;
$$;

create function outbox_internal.unfence(rest regclass) returns void
language plpgsql as $$
begin
    execute format('lock table only %s in access exclusive mode', rest);
    if exists (select from pg_constraint as fenced
                where fenced.conrelid = rest and fenced.conname = 'retention_fence') then
        execute format('alter table %s drop constraint retention_fence', rest);
        execute format('drop trigger retention_fence on %s', rest);
    end if;
end;
$$;

-- What each partition needs that attaching it does not bring.
create function outbox_internal.finish_partition(part regclass, log text) returns void
language plpgsql as $$
declare
    owner name := (select pg_get_userbyid(class.relowner) from pg_class as class
                    where class.oid = to_regclass(format('outbox.%I', log)));
begin
    -- so that a publication for all tables forbids no delete
    execute format('alter table %s replica identity full', part);
    if log = 'events' then
        perform outbox_internal.watch_partition(part);
    end if;
    if owner <> current_user then
        execute format('alter table %s owner to %I', part, owner);
    end if;
end;
$$;

-- The triggers of outbox_internal.watch_partitions, for one table that may not be attached yet.
create function outbox_internal.watch_partition(part regclass) returns void
language plpgsql as $$
begin
    execute format('create trigger forget_deleted after delete on %s '
                   'referencing old table as removed '
                   'for each statement execute function outbox_internal.forget_deleted()', part);
    execute format('create trigger forget_truncated before truncate on %s '
                   'for each statement execute function outbox_internal.forget_truncated()', part);
end;
$$;

-- The default partition becomes a partition of everything before a border, and a new and empty one
-- takes its place. No row is moved. Without a fence the table is scanned meanwhile.
create function outbox_internal.convert_default(log text, rest regclass, border timestamptz)
returns text
language plpgsql as $$
declare
    parent  text := format('outbox.%I', log);
    renamed text := format('%s_until_%s', log,
                           to_char(border at time zone 'UTC', 'YYYYMMDD"t"HH24MI'));
begin
    -- A standby that confirms commits late must not make publishers wait: nothing is lost with it.
    perform set_config('synchronous_commit', 'local', true);
    execute format('lock table only %s in access exclusive mode', parent);
    execute format('lock table only %s in access exclusive mode', rest);
    execute format('alter table %s detach partition %s', parent, rest);
    execute format('alter table %s rename to %I', rest, renamed);
    execute format('alter table %s attach partition %s for values from (minvalue) to (%L)',
                   parent, rest, border);
    perform outbox_internal.unfence(rest);
    execute format('create table outbox.%I partition of %s default', log || '_default', parent);
    perform outbox_internal.finish_partition(
                to_regclass(format('outbox.%I', log || '_default')), log);
    return renamed;
end;
$$;

-- Creates a partition apart and attaches it, which waits for no publisher. Indexes are created with
-- the table, while nobody sees it.
create function outbox_internal.add_partition(log text, low timestamptz, high timestamptz)
returns text
language plpgsql as $$
declare
    parent text := format('outbox.%I', log);
    made   text := format('%s_%s', log, to_char(low at time zone 'UTC', 'YYYYMMDD"t"HH24MI'));
    part   regclass;
begin
    perform set_config('synchronous_commit', 'local', true);
    if to_regclass(format('outbox.%I', made)) is not null then
        made := made || to_char(low at time zone 'UTC', 'SS') || '_'
                || to_char(high at time zone 'UTC', 'YYYYMMDD"t"HH24MI');
    end if;
    execute format('create table outbox.%I (like %s including all excluding identity)',
                   made, parent);
    part := to_regclass(format('outbox.%I', made));
    perform outbox_internal.finish_partition(part, log);
    execute format('alter table %s attach partition %s for values from (%L) to (%L)',
                   parent, part, low, high);
    return made;
end;
$$;

-- A default partition of more bytes than this is not scanned under a lock.
create function outbox_internal.scanned_at_once() returns bigint
language sql immutable parallel safe as $$ select 8388608::bigint $$;

-- Up to when partitions cover the time from `at` on without a gap. If none covers `at`, the end of
-- the last one before it; -infinity if there is none. And where the next one begins, or infinity.
create function outbox_internal.covered_until(
    log text, at timestamptz, out top timestamptz, out beyond timestamptz
)
language plpgsql stable as $$
declare
    part record;
begin
    top := '-infinity';
    beyond := 'infinity';
    for part in select one.* from outbox_internal.log_partitions(log) as one
                 where one.high > at order by one.low loop
        if part.low <= greatest(top, at) then
            top := greatest(top, part.high);
        else
            beyond := part.low;
            return;
        end if;
    end loop;
    if top = '-infinity' then
        -- the last of those that are past
        select coalesce(max(one.high), '-infinity') into top
          from outbox_internal.log_partitions(log) as one where one.high <= at;
    end if;
end;
$$;

-- One step towards a whole partition ahead. Returns what was done, null when nothing is to
-- be done; `problem` is why it cannot be done now.
create function outbox_internal.make_partition_at(
    log     text,
    period  interval,
    at      timestamptz,
    out done text,
    out partition text,
    out problem text
)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms' set datestyle = 'ISO' set timezone = 'UTC' as $$
declare
    key    name := outbox_internal.log_column(log, period);
    width  interval := outbox_internal.partition_width(period);
    parent regclass := to_regclass(format('outbox.%I', log));
    rest   regclass;
    top    timestamptz;  -- end of the partitions that cover the time from now on without a gap
    beyond timestamptz;  -- beginning of the first one behind that
    fence  timestamptz;
    valid  boolean;
    low    timestamptz;
    gap    text;
begin
    -- One relay at a time.
    if not pg_try_advisory_xact_lock(7411005) then
        done := 'busy';
        return;
    end if;
    select nullif(tree.partdefid, 0) into rest
      from pg_partitioned_table as tree where tree.partrelid = parent;
    if rest is null then
        execute format('create table outbox.%I partition of %s default', log || '_default', parent);
        perform outbox_internal.finish_partition(
                    to_regclass(format('outbox.%I', log || '_default')), log);
        done := 'made';
        partition := log || '_default';
        return;
    end if;
    select covered.top, covered.beyond into top, beyond
      from outbox_internal.covered_until(log, at) as covered;
    select obj_description(fenced.oid, 'pg_constraint')::timestamptz, fenced.convalidated
      into fence, valid
      from pg_constraint as fenced
     where fenced.conrelid = rest and fenced.conname = 'retention_fence';

    if top <= at and (top > '-infinity' or beyond < 'infinity') then
        gap := format('until %s rows go to %s: no partition covers the time from now on',
                      coalesce(nullif(beyond, 'infinity'),
                               outbox_internal.border_after(at + width, width)), rest);
    end if;
    if fence is not null and (fence <= at or top >= at + width or beyond <= fence) then
        -- it stood for too long, or is needed no longer
        perform outbox_internal.unfence(rest);
        done := 'unfenced';
        return;
    end if;
    if top >= at + width then
        return;
    end if;
    if fence is not null and not valid then
        -- publishers write meanwhile
        execute format('alter table %s validate constraint retention_fence', rest);
        done := 'validated';
        return;
    end if;
    if fence is null and pg_relation_size(rest) > outbox_internal.scanned_at_once() then
        low := case when top <= at then outbox_internal.border_after(at + width, width)
                    -- what is set before the fence must not belong to the last partition
                    else top + interval '1 second' end;
        if low >= beyond then
            problem := gap;
            return;
        end if;
        perform outbox_internal.fence(rest, key, low);
        done := 'fenced';
        return;
    end if;
    if top = '-infinity' and beyond = 'infinity' then
        partition := outbox_internal.convert_default(
                         log, rest,
                         coalesce(fence, outbox_internal.border_after(at + width, width)));
        done := 'converted';
        return;
    end if;
    -- When no relay came for long, the default partition has rows of a time up to now. They stay.
    low := case when fence is not null then greatest(fence, top)
                when top > at then top
                else outbox_internal.border_after(at + width, width) end;
    if low >= beyond then
        problem := gap;
        return;
    end if;
    partition := outbox_internal.add_partition(
                     log, low, least(outbox_internal.border_after(low, width), beyond));
    done := 'made';
exception
    when lock_not_available or deadlock_detected then
        done := 'locked';
        partition := null;
        problem := 'a lock: ' || sqlerrm;
    when check_violation then
        done := 'refused';
        partition := null;
        problem := format('%s has rows of a time in the future, so that no partition can be made '
                          'for it: %s', rest, sqlerrm);
    when others then
        done := 'refused';
        partition := null;
        problem := sqlerrm;
end;
$$;

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
