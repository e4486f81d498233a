package config

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"agent/internal/storage"
)

// Bounds of whole numbers; WAL-G's values are cut to the upper ones.
const (
	maxConcurrency  = 64
	maxIncrementals = 1000
	maxLabel        = 1024 // bytes: PostgreSQL's MAXPGPATH, xlog.c do_pg_backup_start
)

// Bounds of durations. Those without a use for an upper one have longest.
const (
	longest      = time.Duration(1<<63 - 1)
	minFullEvery = time.Hour
	maxFullEvery = 3650 * day
	minLock      = day
	maxLock      = 36500 * day // S3 takes at most 100 years (PutObjectLockConfiguration)
)

// parser stores a value in a field of T, which is Config or Repository. home
// replaces a leading "~/". Its error is a reason, without the value.
type parser[T any] = func(t *T, v value, home string) error

var (
	errNotAllowed  = errors.New("it is not one of the allowed values")
	errNotAbsolute = errors.New("it is not an absolute path")
	errNoHome      = errors.New("~ cannot be resolved, since HOME is not set")
)

func fixed(s string) func(Input) string { return func(Input) string { return s } }

func storeText[T any](field func(*T) *string) parser[T] {
	return func(c *T, v value, _ string) error {
		*field(c) = v.text()
		return nil
	}
}

func storeChoice[T any](field func(*T) *string, allowed ...string) parser[T] {
	return func(c *T, v value, _ string) error {
		if !slices.Contains(allowed, v.text()) {
			return errNotAllowed
		}
		*field(c) = v.text()
		return nil
	}
}

func storeInt(field func(*Config) *int, least, most int) parser[Config] {
	return func(c *Config, v value, _ string) error {
		n, err := wholeNumber(v.text())
		if err != nil {
			return err
		}
		if n < least || n > most {
			return errors.New("it is out of range")
		}
		*field(c) = n
		return nil
	}
}

// wholeNumber reads decimal digits and nothing else; a number too big for an
// int becomes the biggest one, for range checks to refuse or cut.
func wholeNumber(s string) (int, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, errors.New("it is not a whole number")
	}
	n, err := strconv.Atoi(s)
	if errors.Is(err, strconv.ErrRange) {
		return int(^uint(0) >> 1), nil
	}
	return n, err
}

func storeRate(field func(*Config) *int64) parser[Config] {
	return storeSize(field, lowestRate, "that is too slow to work with (is a unit missing?)")
}

func storeBacklog(field func(*Config) *int64) parser[Config] {
	return storeSize(field, lowestBacklog, "that is too little to tell an outage by (is a unit missing?)")
}

// storeSize takes 0, or a size that is not less than least.
func storeSize(field func(*Config) *int64, least int64, less string) parser[Config] {
	return func(c *Config, v value, _ string) error {
		n, err := ParseSize(v.text())
		if err != nil {
			return err
		}
		if n != 0 && n < least {
			return errors.New(less)
		}
		*field(c) = n
		return nil
	}
}

func storeDuration(field func(*Config) *time.Duration, least, most time.Duration) parser[Config] {
	return func(c *Config, v value, _ string) error {
		d, err := ParseDuration(v.text())
		if err != nil {
			return err
		}
		if d < least {
			return errors.New("that is too short")
		}
		if d > most {
			return errors.New("that is too long")
		}
		*field(c) = d
		return nil
	}
}

func storeLevel(field func(*Config) *slog.Level) parser[Config] {
	return func(c *Config, v value, _ string) error {
		for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
			if v.text() == strings.ToLower(level.String()) {
				*field(c) = level
				return nil
			}
		}
		return errNotAllowed
	}
}

func storeLabel(field func(*Config) *string) parser[Config] {
	return func(c *Config, v value, _ string) error {
		if len(v.text()) > maxLabel {
			return fmt.Errorf("it has %d bytes", len(v.text()))
		}
		*field(c) = v.text()
		return nil
	}
}

// storePath takes a directory that the user names, as it is.
func storePath(field func(*Config) *string, what string) parser[Config] {
	return func(c *Config, v value, home string) error {
		path, err := expandHome(v.text(), home)
		if err != nil {
			return err
		}
		if strings.Contains(path, "://") {
			return fmt.Errorf("it is a URL, and %s is on this host", what)
		}
		*field(c) = path
		return nil
	}
}

// storeFile takes the path of a file. Only a flag, which somebody typed with
// a working directory in mind, may be relative: PostgreSQL runs
// archive_command in the data directory, a service manager in /.
func storeFile[T any](field func(*T) *string) parser[T] {
	return func(c *T, v value, home string) error {
		path, err := expandHome(v.text(), home)
		if err != nil {
			return err
		}
		if !filepath.IsAbs(path) && v.origin.kind != fromFlag {
			return errNotAbsolute
		}
		*field(c) = path
		return nil
	}
}

func storeRecipients(field func(*Config) *[]string) parser[Config] {
	return func(c *Config, v value, home string) error {
		items := v.items
		if !v.list {
			items = strings.FieldsFunc(v.text(), func(r rune) bool { return r == ',' || r == '\n' || r == '\r' })
		}
		recipients := make([]string, 0, len(items))
		for _, item := range items {
			item = strings.TrimSpace(item)
			if item == "" {
				continue
			}
			r, err := recipient(item, home, v.origin.kind == fromFlag)
			if err != nil {
				return err
			}
			recipients = append(recipients, r)
		}
		if len(recipients) == 0 {
			return errEmpty
		}
		*field(c) = recipients
		return nil
	}
}

// recipient tells a public key from a path. It only keeps apart what cannot
// be confused; the keys themselves are parsed by package crypto.
func recipient(s, home string, relative bool) (string, error) {
	for _, prefix := range []string{"age1", "ssh-"} {
		if strings.HasPrefix(s, prefix) {
			return s, nil
		}
	}
	path, err := expandHome(s, home)
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(path) && !relative {
		return "", fmt.Errorf("%q is neither a recipient nor an absolute path", shorten(maskAny(s)))
	}
	return path, nil
}

func expandHome(path, home string) (string, error) {
	rest, found := strings.CutPrefix(path, "~/")
	switch {
	case path == "~":
		rest = ""
	case !found:
		return path, nil
	}
	if !filepath.IsAbs(home) {
		return "", errNoHome
	}
	return filepath.Join(home, rest), nil
}

func absolute(path, home string) (string, error) {
	path, err := expandHome(path, home)
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(path) {
		return "", errNotAbsolute
	}
	return path, nil
}

// repositoryURL leaves the rules to package storage, so that there is one
// place that knows which URLs are understood.
func repositoryURL(s, home string) (string, error) {
	s, err := expandHome(s, home)
	if err != nil {
		return "", err
	}
	if _, _, _, err := storage.ParseURL(s); err != nil {
		return "", err
	}
	return s, nil
}

// compressionSyntax is checked here so that the error names the source;
// package compress gives it a meaning.
var compressionSyntax = regexp.MustCompile(`^(none|zstd(:([1-9]|1[0-9]|2[0-2]))?|lz4(:([1-9]|1[0-2]))?)$`)

func compression(s string) (string, error) {
	if !compressionSyntax.MatchString(s) {
		return "", errNotAllowed
	}
	return s, nil
}
