package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"weft/prog/api"
	"weft/prog/words"
)

// settingsFile is where this host's settings are. It is read by launch and agent, under the
// environment, which is under the flags; launch writes into it what it was told.
const settingsFile = "/etc/weft/weft.yaml"

// settingsMark begins a file that launch made. Reset removes a file with this line, and no other.
const settingsMark = "# Made by `weft launch`; `weft reset` removes this file. Without this line it stays."

// notInFile are flags that are no settings. A token is a secret: its place is the state folder.
var notInFile = []string{"help", "json", "socket", "token", "wait", "settings", "found"}

// origins say where the value of each flag came from that is not its default.
type origins map[string]string

// settings are the entries of a settings file.
type settings struct {
	path    string
	text    []byte
	entries map[string]json.RawMessage
}

// readSettings reads a settings file. One that is not there has no entries.
func readSettings(path string) (s settings, err error) {
	s.path = path
	s.text, err = os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("settings: %w", err)
	}
	if err := yaml.UnmarshalStrict(s.text, &s.entries); err != nil {
		return s, words.Misused(unreadable(path, s.text, err))
	}
	return s, nil
}

// unreadable says for people, on one line, why a text holds no settings. The YAML package names Go's
// types, and only some of its errors name a line.
func unreadable(path string, text []byte, err error) error {
	why := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok { // a text, a number or a list
		start := firstEntry.FindIndex(text)
		why = fmt.Sprintf("line %d: there is no key with a value", 1+bytes.Count(text[:start[0]], []byte("\n")))
	} else if twice := keyTwice.FindStringSubmatch(why); twice != nil {
		why = twice[1] + twice[2] + " is there a second time"
	} else if strings.Contains(why, "invalid map key") {
		why = "a key is no text"
	}
	why = strings.TrimPrefix(strings.TrimPrefix(why, "yaml: "), "json: ")
	if line, rest, ok := strings.Cut(why, ": "); ok && strings.HasPrefix(line, "line ") {
		path, why = path+", "+line, rest
	}
	return fmt.Errorf("settings file %s: %s: want lines such as `mtu: 1300`, each key once", path, strings.Join(strings.Fields(why), " "))
}

var (
	firstEntry = regexp.MustCompile(`(?m)^[ \t]*[^#\s]|\z`)                             // the first line that is neither empty nor a comment
	keyTwice   = regexp.MustCompile(`(line \d+: )key "?([^"\n]+)"? already set in map`) // as the YAML package words it
)

// keyAt matches the line where the entry of a key begins.
func keyAt(key string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^["']?` + regexp.QuoteMeta(key) + `["']?[ \t]*:`)
}

// at is where a key is, for a person.
func (s settings) at(key string) string {
	where := s.path
	if found := keyAt(key).FindIndex(s.text); found != nil {
		where = fmt.Sprintf("%s, line %d", s.path, 1+bytes.Count(s.text[:found[0]], []byte("\n")))
	}
	return where + ": " + key
}

// apply sets the flags that were given neither as flags nor in the environment.
func (s settings) apply(flags *pflag.FlagSet, from origins) error {
	keys := make([]string, 0, len(s.entries))
	for key := range s.entries {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		f := flags.Lookup(key)
		switch {
		case key == "token":
			return words.Misused(fmt.Errorf("%s: a token does not belong into this file, which others may read: give it once with `weft launch --token -`, or put it into /var/lib/weft/secret (mode 0600)", s.at(key)))
		case f == nil || slices.Contains(notInFile, key):
			return words.Misused(fmt.Errorf("%s: there is no such setting%s: `weft config view` lists them", s.at(key), didYouMean(key, flags)))
		}
		values, err := flagValues(f, s.entries[key])
		if err != nil {
			return words.Misused(fmt.Errorf("%s: %w", s.at(key), err))
		}
		if f.Changed {
			continue
		}
		if setFlag(flags, f, values) != nil {
			return words.Misused(fmt.Errorf("%s: %w", s.at(key), badValue(f, strings.Join(values, ","))))
		}
		from[key] = api.FromFile
	}
	return nil
}

// applyDirs sets the folders that a command was not given to what the settings file says: the agent
// uses those.
func applyDirs(path string, flags *pflag.FlagSet) error {
	file, err := readSettings(path)
	if err != nil {
		return err
	}
	for key := range file.entries {
		if f := flags.Lookup(key); f == nil || !strings.HasSuffix(key, "-dir") {
			delete(file.entries, key)
		}
	}
	return file.apply(flags, origins{})
}

// didYouMean names the setting that was meant where only case or the kind of dash differ, or one letter.
func didYouMean(key string, flags *pflag.FlagSet) (hint string) {
	plain := func(s string) string { return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s)) }
	flags.VisitAll(func(f *pflag.Flag) {
		if plain(f.Name) == plain(key) && !slices.Contains(notInFile, f.Name) {
			hint = fmt.Sprintf(" (did you mean %s?)", f.Name)
		}
	})
	return hint
}

// flagValues are what an entry says for a flag, which tells of which type it has to be.
func flagValues(f *pflag.Flag, raw json.RawMessage) ([]string, error) {
	_, list := f.Value.(pflag.SliceValue)
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, err
	}
	one := func(v any) (string, error) {
		switch v := v.(type) {
		case string:
			if f.Value.Type() != "int" && f.Value.Type() != "bool" {
				return v, nil
			}
		case float64:
			if f.Value.Type() == "int" && v == float64(int64(v)) {
				return fmt.Sprint(int64(v)), nil
			}
		case bool:
			if f.Value.Type() == "bool" {
				return fmt.Sprint(v), nil
			}
		}
		return "", fmt.Errorf("want %s, not %s", kindOf(f), raw)
	}
	items, ok := v.([]any)
	if !ok {
		text, err := one(v)
		return []string{text}, err
	}
	if !list {
		return nil, fmt.Errorf("want %s, not a list", kindOf(f))
	}
	values := []string{}
	for _, item := range items {
		text, err := one(item)
		if err != nil {
			return nil, err
		}
		values = append(values, text)
	}
	return values, nil
}

func kindOf(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "int":
		return "a whole number"
	case "bool":
		return "true or false"
	case "duration":
		return "a duration in quotes, such as \"90s\""
	case "stringSlice":
		return "a text in quotes, or a list of them"
	}
	return "a text in quotes"
}

func setFlag(flags *pflag.FlagSet, f *pflag.Flag, values []string) error {
	if slice, ok := f.Value.(pflag.SliceValue); ok {
		if len(values) != 1 { // Set splits one text at its commas
			f.Changed = true
			return slice.Replace(values)
		}
	}
	return flags.Set(f.Name, values[0])
}

// with is the file's text with other values for some keys; all other lines stay as they are.
func (s settings) with(given map[string]string) []byte {
	text := s.text
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte(settingsMark + "\n")
	}
	keys := make([]string, 0, len(given))
	for key := range given {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		line := []byte(key + ": " + given[key] + "\n")
		found := keyAt(key).FindIndex(text)
		if found == nil {
			if !bytes.HasSuffix(text, []byte("\n")) {
				text = append(text, '\n')
			}
			text = append(text, line...)
			continue
		}
		end := found[1] + entryEnd(text[found[1]:])
		text = slices.Concat(text[:found[0]], line, text[end:])
	}
	return text
}

// entryEnd is how long an entry goes on: to the next line that is neither indented nor an item of a list.
func entryEnd(text []byte) int {
	end := 0
	for {
		next := bytes.IndexByte(text[end:], '\n')
		if next < 0 {
			return len(text)
		}
		end += next + 1
		if end == len(text) || !bytes.ContainsAny(text[end:end+1], " \t-") {
			return end
		}
	}
}

// givenSettings are the flags of a command line that the settings file can hold, as YAML.
func givenSettings(flags *pflag.FlagSet, from origins) map[string]string {
	given := map[string]string{}
	flags.Visit(func(f *pflag.Flag) {
		if from[f.Name] != api.FromFlag || slices.Contains(notInFile, f.Name) {
			return
		}
		var v any = f.Value.String()
		if slice, ok := f.Value.(pflag.SliceValue); ok {
			v = append([]string{}, slice.GetSlice()...)
		}
		data, _ := json.Marshal(v) // texts always can
		if t := f.Value.Type(); t == "int" || t == "bool" {
			data = []byte(f.Value.String())
		}
		given[f.Name] = string(data)
	})
	return given
}

// saveSettings writes what launch was told into the settings file, so that the next launch, and
// a unit, need not be told again.
func saveSettings(path string, given map[string]string) error {
	if len(given) == 0 {
		return nil
	}
	s, err := readSettings(path)
	if err != nil {
		return err
	}
	text := s.with(given)
	if bytes.Equal(text, s.text) {
		return nil
	}
	if err := yaml.UnmarshalStrict(text, &map[string]json.RawMessage{}); err != nil {
		return fmt.Errorf("settings file %s: its form is too unusual for `weft launch` to write into it: write one key per line, such as `mtu: 1300`", path)
	}
	return replaceFile(path, text)
}

// restore makes the file what it was when it was read.
func (s settings) restore() error {
	if s.text == nil {
		return removeSettings(s.path)
	}
	return replaceFile(s.path, s.text)
}

// replaceFile writes a file whole or not at all.
func replaceFile(path string, text []byte) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".weft-*")
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	defer os.Remove(tmp.Name()) // fails once it is renamed
	_, err = tmp.Write(text)
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return nil
}

// removeSettings removes a settings file that launch made.
func removeSettings(path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.HasPrefix(text, []byte(settingsMark)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	_ = os.Remove(filepath.Dir(path)) // it may hold other files
	return nil
}

// listSettings are all settings with their values and where they came from.
func listSettings(flags *pflag.FlagSet, from origins) (list []api.Setting) {
	flags.VisitAll(func(f *pflag.Flag) {
		if slices.Contains(notInFile, f.Name) {
			return
		}
		origin := api.FromDefault
		if o, ok := from[f.Name]; ok {
			origin = o
		}
		value := f.Value.String()
		if slice, ok := f.Value.(pflag.SliceValue); ok {
			value = strings.Join(slice.GetSlice(), ",")
		}
		list = append(list, api.Setting{Name: f.Name, Value: value, Origin: origin})
	})
	return list
}
