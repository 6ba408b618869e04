package member

import "fmt"

const (
	minute = 60
	hour   = 60 * minute
	day    = 24 * hour
)

// utc formats Unix seconds for people. Package time is not used in pure packages, so that these cannot
// read the clock.
func utc(at int64) string {
	days, rest := at/day, at%day
	if rest < 0 {
		days, rest = days-1, rest+day
	}
	y, m, d := date(days)
	return fmt.Sprintf("%04d-%02d-%02d %02d:%02d:%02d UTC", y, m, d, rest/hour, rest%hour/minute, rest%minute)
}

// date returns the Gregorian date of a number of days since 1970-01-01. It counts in years that begin
// on 1 March, so that the leap day is a year's last, and in cycles of 400 years, which all have the
// same length.
func date(days int64) (year, month, dayOfMonth int64) {
	const cycle = 400*365 + 97
	days += 719468 // from 0000-03-01 to 1970-01-01
	n := days / cycle
	if days%cycle < 0 {
		n--
	}
	d := days - n*cycle
	y := (d - d/1460 + d/36524 - d/(cycle-1)) / 365
	d -= 365*y + y/4 - y/100
	m := (5*d + 2) / 153 // months since March
	dayOfMonth = d - (153*m+2)/5 + 1
	if m < 10 {
		return n*400 + y, m + 3, dayOfMonth
	}
	return n*400 + y + 1, m - 9, dayOfMonth
}

// span formats a number of seconds for people, with two units at most.
func span(seconds int64) string {
	switch {
	case seconds < minute:
		return fmt.Sprintf("%ds", seconds)
	case seconds < hour:
		return fmt.Sprintf("%dm%ds", seconds/minute, seconds%minute)
	case seconds < day:
		return fmt.Sprintf("%dh%dm", seconds/hour, seconds%hour/minute)
	}
	return fmt.Sprintf("%dd%dh", seconds/day, seconds%day/hour)
}
