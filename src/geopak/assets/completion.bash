# Completes keys, groups and names of geopak's commands: python -m geopak.train …, geopak-train ….
_geopak_complete() {
    local line=${COMP_LINE:0:COMP_POINT} first word= rest choices
    local -a words helper
    read -ra words <<< "$line"
    if [[ ${words[1]-} == -m && ${words[2]-} == geopak.* ]]; then
        first=3
    elif [[ ${words[0]##*/} == geopak-* ]]; then
        first=1
    else
        return
    fi
    # The module's own name is not ours to complete.
    [[ ${#words[@]} -gt $first || $line == *" " ]] || return
    case "${words[first]-}" in doctor | leaks | shards) first=$((first + 1)) ;; esac
    helper=("${words[@]:0:first}")
    rest="${words[*]:first}"
    if [[ $line != *" " ]]; then
        word=${words[-1]}
    elif [[ -n $rest ]]; then
        rest+=" "
    fi
    choices=$(COMP_LINE="geopak $rest" COMP_POINT= "${helper[@]}" -sc query=bash 2> /dev/null)
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
}

# A key and its value are one word.
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _geopak_complete \
    python python3 geopak-synthetic geopak-prepare geopak-train geopak-calibrate geopak-evaluate geopak-predict
