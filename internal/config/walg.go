package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"agent/internal/errs"
	"agent/internal/storage"
)

// alias is a variable of WAL-G (its documentation, STORAGES.md and
// PostgreSQL.md) that means the same as one of our settings.
type alias struct {
	env     string
	key     string
	form    string // what its value may be, for errors and the documentation
	becomes string // for the documentation
	// only is the scheme of the repositories for which it counts; "": it does
	// not depend on them.
	only string
	// yields lists variables that the SDK of the store reads by itself, and
	// that say the same.
	yields []string
	// convert gives the value in our syntax, and a note if it had to be
	// changed. variable looks another variable up.
	convert func(text string, variable lookup) (converted, note string, err error)
}

// lookup is loader.variable.
type lookup func(name string) (string, bool)

func aliases() []alias {
	prefix := func(env, scheme, ours, form string) alias {
		return alias{
			env: env, key: keyRepository, form: form, becomes: "`" + ours + "://` and the rest",
			convert: func(text string, _ lookup) (string, string, error) {
				rest, ok := strings.CutPrefix(text, scheme+"://")
				if !ok || rest == "" {
					return "", "", errors.New("it does not begin with " + scheme + "://")
				}
				return ours + "://" + rest, "", nil
			},
		}
	}
	number := func(env, key, becomes string, least, most int) alias {
		return alias{
			env: env, key: key, becomes: becomes,
			form:    fmt.Sprintf("a whole number of at least %d", least),
			convert: func(text string, _ lookup) (string, string, error) { return cutNumber(text, least, most) },
		}
	}
	return append([]alias{
		{
			env: "WALG_FILE_PREFIX", key: keyRepository, form: "an absolute path",
			becomes: "`file://` and the path", convert: fileURL,
		},
		prefix("WALG_S3_PREFIX", "s3", storage.SchemeS3, "s3://bucket/path"),
		prefix("WALG_GS_PREFIX", "gs", storage.SchemeGCS, "gs://bucket/path"),
		prefix("WALG_AZ_PREFIX", "azure", storage.SchemeAzure, "azure://container/path"),
		{
			env: "WALG_SSH_PREFIX", key: keyRepository, form: "ssh://host/path",
			becomes: "`sftp://`, the user of `SSH_USERNAME`, the host, the port of `SSH_PORT`, and the path", convert: sftpURL,
		},
		{
			env: "WALG_COMPRESSION_METHOD", key: "compression", form: "lz4, zstd, none",
			becomes: "the same; `lzma` and `brotli` are errors",
			convert: func(text string, _ lookup) (string, string, error) {
				if !slices.Contains([]string{"lz4", "zstd", "none"}, text) {
					return "", "", errNotAllowed
				}
				return text, "", nil
			},
		},
		number("WALG_UPLOAD_CONCURRENCY", "concurrency", "the larger of the two, at most 64", 1, maxConcurrency),
		number("WALG_DOWNLOAD_CONCURRENCY", "concurrency", "the larger of the two, at most 64", 1, maxConcurrency),
		number("WALG_DELTA_MAX_STEPS", "max_incrementals", "the same, at most 1000", 0, maxIncrementals),
	}, storeAliases()...)
}

// fileURL makes a URL of a path; WAL-G also takes file://localhost/path.
func fileURL(text string, _ lookup) (string, string, error) {
	path := text
	if rest, ok := strings.CutPrefix(text, "file://"); ok {
		path = strings.TrimPrefix(rest, "localhost")
	}
	if !strings.HasPrefix(path, "/") {
		return "", "", errNotAbsolute
	}
	return (&url.URL{Scheme: storage.SchemeFile, Path: path}).String(), "", nil
}

// cutNumber keeps a number that worked with WAL-G working.
func cutNumber(text string, least, most int) (string, string, error) {
	n, err := wholeNumber(text)
	switch {
	case err != nil:
		return "", "", err
	case n < least:
		return "", "", errors.New("it is out of range")
	case n > most:
		return strconv.Itoa(most), fmt.Sprintf("is cut to %d, the most that is allowed", most), nil
	default:
		return text, "", nil
	}
}

// replacements says what to do about variables of WAL-G that many have set
// and that are not taken over.
func replacements() map[string]string {
	return map[string]string{
		"WALG_CONFIG_PATH":             "configuration files of WAL-G are not read; use " + EnvConfig,
		"WALG_DISK_RATE_LIMIT":         "use AGENT_READ_RATE",
		"WALG_LOG_LEVEL":               "use AGENT_LOG_LEVEL",
		"WALG_NETWORK_RATE_LIMIT":      "use AGENT_BANDWIDTH",
		"WALG_PG_WAL_SIZE":             "the segment size is read from the WAL itself",
		"WALG_PREVENT_WAL_OVERWRITE":   "an archived WAL file is never overwritten",
		"WALG_UPLOAD_DISK_CONCURRENCY": "use AGENT_CONCURRENCY",
		"WALG_ZSTD_LEVEL":              "use AGENT_COMPRESSION=zstd:LEVEL",
	}
}

// readWALG takes WAL-G's variables for the settings that no layer of ours
// sets, and leaves none of the others unmentioned. own says where one of
// ours was set.
func (l *loader) readWALG(own func(key string) (origin, bool)) layer {
	settings := layer{}
	for _, a := range aliases() {
		if a.only == "" && !l.outdone(a, own) {
			l.readAlias(a, settings)
		}
	}
	l.readOtherWALG(own)
	return settings
}

// outdone says whether a variable of WAL-G is not set, or loses against what
// is named in a warning.
func (l *loader) outdone(a alias, own func(key string) (origin, bool)) bool {
	if _, set := l.variable(a.env); !set {
		return true
	}
	keys := []string{a.key}
	if a.key == keyRepository {
		keys = append(keys, keyRepositories)
	}
	for _, key := range keys {
		if from, set := own(key); set {
			l.warn("%s is ignored, because %s is set (%s)", a.env, key, from)
			return true
		}
	}
	for _, name := range a.yields {
		if _, set := l.variable(name); set {
			l.warn("%s is ignored, because %s is set", a.env, name)
			return true
		}
	}
	return false
}

func (l *loader) readAlias(a alias, settings layer) {
	text, _ := l.variable(a.env)
	from := origin{kind: fromEnv, name: a.env}
	before, twice := settings[a.key]
	if twice && a.key == keyRepository {
		l.problems.add(errs.New(errs.Config, "Keep one of them, or set AGENT_REPOSITORY, which wins over both.",
			"%s and %s both name a repository", before.origin.name, a.env))
		return
	}
	converted, note, err := a.convert(text, l.variable)
	if err != nil {
		o, _ := find(l.table, func(o option) bool { return o.Key == a.key })
		o.Allowed = a.form
		l.problems.add(badValue(o, value{items: []string{text}, origin: from}, err))
		return
	}
	if note != "" {
		l.warn("%s %s", a.env, note)
	}
	if twice && !larger(converted, before.text()) {
		return
	}
	settings[a.key] = value{items: []string{converted}, origin: from, only: a.only}
}

// larger compares two numbers that cutNumber has accepted.
func larger(a, b string) bool {
	m, errA := strconv.Atoi(a)
	n, errB := strconv.Atoi(b)
	return errA == nil && errB == nil && m > n
}

// readOtherWALG refuses the settings for encryption, unless there are
// recipients, since ignoring them would store in the clear what was meant to
// be encrypted; it warns of everything else.
func (l *loader) readOtherWALG(own func(key string) (origin, bool)) {
	understood := map[string]bool{}
	for _, a := range aliases() {
		understood[a.env] = true
	}
	hints := replacements()
	_, sealed := own("recipients")
	var encryption []string
	for _, name := range l.variables(isWALG) {
		switch {
		case understood[name]:
		case isEncryption(name) && sealed:
			l.warn("%s is ignored: objects are encrypted for the age recipients", name)
		case isEncryption(name):
			encryption = append(encryption, name)
		case hints[name] != "":
			l.warn("%s is ignored: %s", name, hints[name])
		default:
			l.warn("%s is ignored: it is a setting of WAL-G that has no counterpart here", name)
		}
	}
	if len(encryption) == 0 {
		return
	}
	verb := "asks"
	if len(encryption) > 1 {
		verb = "ask"
	}
	l.problems.add(errs.New(errs.Config,
		"Set AGENT_RECIPIENTS to the age public keys for which objects shall be encrypted, or unset what is left of WAL-G's encryption to store objects unencrypted.",
		"%s %s for WAL-G's encryption, which the agent does not have, and no recipients are set",
		strings.Join(encryption, ", "), verb))
}

// isWALG says whether a variable is of WAL-G or of its predecessor WAL-E,
// whose names it still reads. One has no prefix.
func isWALG(name string) bool {
	return strings.HasPrefix(name, "WALG_") || strings.HasPrefix(name, "WALE_") || name == "YC_CSE_KMS_KEY_ID"
}

func isEncryption(name string) bool {
	for _, part := range []string{"PGP", "GPG", "LIBSODIUM", "CSE_KMS", "ENVELOPE"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}
