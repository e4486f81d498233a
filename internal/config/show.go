package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
)

// Setting is one line of "config show".
type Setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"`  // as it would be set; secrets are Mask
	Source string `json:"source"` // "default", "file PATH line N", "env NAME", "flag --NAME"
}

// Effective returns every setting with its value and where that is from, in
// the order of Options. A state_dir that the caller resolved shows as default.
// Of repositories from a list, instead of the key repositories, name, URL and
// all that counts for each follow, with keys such as repositories[0].url.
func (c Config) Effective() []Setting {
	rows := table()
	settings := make([]Setting, 0, len(rows))
	for _, o := range rows {
		if o.Key == keyRepositories && len(c.items) > 0 {
			settings = append(settings, c.effectiveItems()...)
			continue
		}
		settings = append(settings, Setting{Key: o.Key, Value: o.show(c), Source: c.origins[o.Key].String()})
	}
	return settings
}

// effectiveItems lists the repositories of a list.
func (c Config) effectiveItems() []Setting {
	var settings []Setting
	for _, r := range c.items {
		for _, row := range itemTable() {
			from, set := r.origins[row.Key]
			if set || row.Schemes == nil {
				settings = append(settings, Setting{Key: r.at(row.Key), Value: row.show(r.Repository), Source: from.String()})
			}
		}
	}
	return settings
}

// MarshalJSON encodes the path of the file, the settings and the warnings;
// secrets are hidden.
func (c Config) MarshalJSON() ([]byte, error) {
	warnings := c.warnings
	if warnings == nil {
		warnings = []string{}
	}
	data, err := json.Marshal(struct {
		File     string    `json:"file"`
		Settings []Setting `json:"settings"`
		Warnings []string  `json:"warnings"`
	}{c.FilePath, c.Effective(), warnings})
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return data, nil
}

// String lists the settings as key=value; secrets are hidden.
func (c Config) String() string {
	var b strings.Builder
	for i, s := range c.Effective() {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%q", s.Key, s.Value)
	}
	return b.String()
}

// GoString is String, so that %#v shows no secret either.
func (c Config) GoString() string { return c.String() }

// LogValue gives the settings to slog; secrets are hidden.
func (c Config) LogValue() slog.Value {
	settings := c.Effective()
	attrs := make([]slog.Attr, len(settings))
	for i, s := range settings {
		attrs[i] = slog.String(s.Key, s.Value)
	}
	return slog.GroupValue(attrs...)
}
