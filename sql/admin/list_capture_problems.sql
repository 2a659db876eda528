-- Captured tables with what is wrong with their capture.
select captured."table", captured.problem
  from outbox.captures as captured
 where captured.problem is not null
 order by 1;
