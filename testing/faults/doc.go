// Package faults holds tests of the backends over broken networks: each over a
// real server, decorated as the agent does it, with stores.FaultProxy or a
// server that throttles between the two.
package faults
