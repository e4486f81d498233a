package metrics

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"agent/internal/storage/decorate"
)

func TestCollector(t *testing.T) {
	c := NewCollector("file:///backup", func() decorate.Counts {
		return decorate.Counts{Put: decorate.KindCounts{Requests: 21, Errors: 2}, Get: decorate.KindCounts{Requests: 3, Errors: 0}, List: decorate.KindCounts{Requests: 4, Errors: 1}, Up: 1000, Down: 2000}
	})
	const want = `
# HELP walagent_storage_bytes_total Bytes sent to the store and read from it.
# TYPE walagent_storage_bytes_total counter
walagent_storage_bytes_total{direction="down",repository="file:///backup"} 2000
walagent_storage_bytes_total{direction="up",repository="file:///backup"} 1000
# HELP walagent_storage_errors_total Operations on the store that failed, by kind.
# TYPE walagent_storage_errors_total counter
walagent_storage_errors_total{kind="delete",repository="file:///backup"} 0
walagent_storage_errors_total{kind="get",repository="file:///backup"} 0
walagent_storage_errors_total{kind="list",repository="file:///backup"} 1
walagent_storage_errors_total{kind="put",repository="file:///backup"} 2
walagent_storage_errors_total{kind="stat",repository="file:///backup"} 0
# HELP walagent_storage_requests_total Operations on the store, by kind.
# TYPE walagent_storage_requests_total counter
walagent_storage_requests_total{kind="delete",repository="file:///backup"} 0
walagent_storage_requests_total{kind="get",repository="file:///backup"} 3
walagent_storage_requests_total{kind="list",repository="file:///backup"} 4
walagent_storage_requests_total{kind="put",repository="file:///backup"} 21
walagent_storage_requests_total{kind="stat",repository="file:///backup"} 0
`
	// A pedantic registry also checks what Describe said.
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&got, family); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, "\n"+got.String()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// archive_command pays for what the binary links with each segment.
func TestAgentDoesNotLinkPrometheus(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "agent/cmd/agent").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "agent/internal/storage/decorate\n") {
		t.Fatalf("not the list of what it needs:\n%s", out)
	}
	for pkg := range strings.Lines(string(out)) {
		if strings.Contains(pkg, "prometheus") || strings.HasSuffix(pkg, "internal/storage/metrics\n") {
			t.Errorf("it depends on %s", pkg)
		}
	}
}
