// Package metrics shows what decorate.Count counts to Prometheus. It is a
// package of its own so that only a program that serves metrics links the
// Prometheus client, and not every archive_command.
package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"agent/internal/storage/decorate"
)

// collector shows counts to Prometheus.
type collector struct {
	counts                  func() decorate.Counts
	requests, errors, bytes *prometheus.Desc
}

// NewCollector shows counts as
//
//	walagent_storage_requests_total{repository,kind}
//	walagent_storage_errors_total{repository,kind}
//	walagent_storage_bytes_total{repository,direction}  direction is "up" or "down"
//
// where kind is put, get, list, stat or delete. The function is called for
// each scrape, possibly by several at once; decorate.Counter.Counts is such a one.
func NewCollector(repository string, counts func() decorate.Counts) prometheus.Collector {
	fixed := prometheus.Labels{"repository": repository}
	desc := func(name, help, label string) *prometheus.Desc {
		return prometheus.NewDesc("walagent_storage_"+name+"_total", help, []string{label}, fixed)
	}
	return &collector{
		counts:   counts,
		requests: desc("requests", "Operations on the store, by kind.", "kind"),
		errors:   desc("errors", "Operations on the store that failed, by kind.", "kind"),
		bytes:    desc("bytes", "Bytes sent to the store and read from it.", "direction"),
	}
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.requests
	ch <- c.errors
	ch <- c.bytes
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counts := c.counts()
	send := func(desc *prometheus.Desc, v uint64, label string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), label)
	}
	for name, k := range counts.Kinds() {
		kind := strings.ToLower(name)
		send(c.requests, k.Requests, kind)
		send(c.errors, k.Errors, kind)
	}
	send(c.bytes, counts.Up, "up")
	send(c.bytes, counts.Down, "down")
}
